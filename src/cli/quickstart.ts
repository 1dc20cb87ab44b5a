/** What `npm start` prints: everything a newcomer needs to see a key live and die, ready to paste, on one screen. */

export interface QuickstartValues {
  readonly url: string
  readonly operatorToken: string
  readonly gatewayCredential: string
}

/** What is done, and the command that does it, in order. The README shows the same ones, and a test runs them. */
export const QUICKSTART = [
  ['Issue a key, whose plaintext comes once, and keep it as the runtime would:', "export MECHA_KEY=$(npx mecha-keys issue 'sales^acmecorp' --name first)"],
  [
    'Verify it, as a gateway does:',
    `curl -s $MECHA_KEYS_URL/v1/verify -H "Authorization: Bearer $GATEWAY_CREDENTIAL" -H 'Content-Type: application/json' -d "{\\"key\\":\\"$MECHA_KEY\\"}"`,
  ],
  ['List what is known of it:', 'npx mecha-keys list'],
  ['Revoke every key of the Mecha:', `curl -s -X POST $MECHA_KEYS_URL/v1/mechas/sales%5Eacmecorp/revoke-keys -H "Authorization: Bearer $OPERATOR_TOKEN"`],
  ['Verify it again, from the command line. It is refused:', 'echo $MECHA_KEY | npx mecha-keys verify'],
] as const

export function renderQuickstart({ url, operatorToken, gatewayCredential }: QuickstartValues): string {
  return [
    '',
    `mecha-keys serves on ${url}, and its contract at /docs`,
    '# Paste this into another terminal, in this folder:',
    `export MECHA_KEYS_URL=${url}`,
    `export OPERATOR_TOKEN=${operatorToken}`,
    `export GATEWAY_CREDENTIAL=${gatewayCredential}`,
    ...QUICKSTART.flatMap(([what, command]) => [`# ${what}`, command]),
    '',
  ].join('\n')
}
