/** What an operator's token can allow. */
export const SCOPES = ['keys:issue', 'keys:read', 'keys:revoke', 'audit:read', 'gateways:manage'] as const
export type Scope = (typeof SCOPES)[number]
