/** What `npm start` prints: everything a newcomer needs to see a key live and die, ready to paste. */

export interface WalkParts {
  readonly url: string
  readonly operatorToken: string
  readonly gatewayCredential: string
}

/** The curl lines of the walk, in order. The README shows the same ones, and a test runs them. */
export const WALK = [
  [
    'Issue a key for a Mecha. Its plaintext is in this answer and nowhere else, ever:',
    `curl -s $URL/v1/keys -H "Authorization: Bearer $OPERATOR_TOKEN" -H 'Content-Type: application/json' -d '{"mecha":"sales^acmecorp","name":"first"}'`,
  ],
  ['Keep it as the runtime would:', 'export MECHA_KEY=mecha_…'],
  ['List what is known of it:', `curl -s "$URL/v1/keys" -H "Authorization: Bearer $OPERATOR_TOKEN"`],
  [
    'Verify it, as a gateway does:',
    `curl -s $URL/v1/verify -H "Authorization: Bearer $GATEWAY_CREDENTIAL" -H 'Content-Type: application/json' -d "{\\"key\\":\\"$MECHA_KEY\\"}"`,
  ],
  [
    'Revoke every key of the Mecha, and verify again:',
    `curl -s -X POST "$URL/v1/mechas/sales%5Eacmecorp/revoke-keys" -H "Authorization: Bearer $OPERATOR_TOKEN"`,
  ],
] as const

export function renderWalk({ url, operatorToken, gatewayCredential }: WalkParts): string {
  const lines = WALK.flatMap(([what, command]) => [`# ${what}`, command, ''])
  return [
    '',
    `mecha-keys serves on ${url} — contract at ${url}/docs`,
    '',
    '# A walk. Paste it line by line into another terminal.',
    `export URL=${url}`,
    `export OPERATOR_TOKEN=${operatorToken}`,
    `export GATEWAY_CREDENTIAL=${gatewayCredential}`,
    '',
    ...lines,
  ].join('\n')
}
