/** The control plane: operators issue and govern keys and gateways, and read what happened. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Operator, OperatorAuthenticator } from './operators/authenticate.js'
import type { Scope } from './operators/scopes.js'
import { databaseFailure } from '../db/outage.js'
import { invalid, notFound, Problem, type ErrorCode } from '../errors.js'
import { boundRequests } from '../http/concurrency-limit.js'
import { answer, HandleSchema, responses } from '../http/schemas.js'
import { Type } from '../http/type.js'
import { refuseSecretsAndUnstorable } from '../http/validation.js'
import { parsePublicId, publicId, type CredentialKind } from '../credentials/id.js'
import { createGateway } from './gateways/create.js'
import { issueKey, rotateKey, type Revealed } from './keys/issue.js'
import type { Caller, ControlParts } from './deps.js'
import { preferredWait, Receipts, type Propagation } from './receipts/receipts.js'
import { revoke, revokeAllOfMecha } from './keys/revoke.js'
import {
  EventPage, EventsQuery, GatewayBody, GatewayIdSchema, GatewayListQuery, GatewayPage,
  IdempotencyHeaders, IssueBody, KeyIdSchema, KeyPage, KillSwitchAnswer, ListQuery, PreferHeaders,
  RevealedGateway, RevealedKey, RevokeBody, RotateBody, RotateHeaders, UpdateBody,
} from './schemas.js'
import { findKey, findLatelyRevoked, listEvents, listKeys, orderOfKeys, readClock, type ListFilter } from './store.js'
import { updateKeyDetails } from './keys/update.js'
import { decodeCursor, encodeCursor, eventView, gatewayView, keyView } from './keys/views.js'

declare module 'fastify' {
  interface FastifyRequest {
    operator: Operator
  }
  interface FastifyContextConfig {
    /** The scope that an operator's token needs for a route of the control plane. */
    scope?: Scope
  }
}

/** The problems of every route here, and of those that take a body. */
const ASKING = ['invalid_request', 'contains_secret', 'unauthenticated', 'insufficient_scope', 'database_unavailable', 'issuer_unavailable', 'overloaded'] satisfies ErrorCode[]
const TELLING = [...ASKING, 'malformed_body', 'body_too_large', 'unsupported_media_type'] satisfies ErrorCode[]

/** A header of calls that wait for the replicas. */
const RECEIPT = { 'Preference-Applied': 'How long the call would have waited, where the request said so' }

export function controlPlane(parts: ControlParts, authenticate: OperatorAuthenticator): FastifyPluginAsyncTypebox {
  return async (app) => {
    boundRequests(app, parts.config.QUEUE_SIZE)
    requireOperator(app, authenticate)
    refuseSecretsAndUnstorable(app)
    const receipts = new Receipts(parts.db, parts.config.REVOCATION_MAX_STALENESS * 1000)
    await app.register(keyRoutes(parts, receipts))
    await app.register(gatewayRoutes(parts, receipts))
    await app.register(eventRoutes(parts))
  }
}

function keyRoutes(parts: ControlParts, receipts: Receipts): FastifyPluginAsyncTypebox {
  const { db } = parts
  const KeyParams = Type.Object({ id: KeyIdSchema })
  return async (app) => {
    app.post(
      '/v1/keys',
      {
        config: { scope: 'keys:issue' },
        schema: {
          ...documented('issueKey', 'Issue a key. Its plaintext is in this answer and nowhere else, ever'),
          headers: IdempotencyHeaders, body: IssueBody,
          response: responses({ 201: revealing(RevealedKey) }, ...TELLING, 'not_found', 'key_limit_reached', 'idempotent_key_in_use', 'idempotency_key_reused'),
        },
      },
      async (request, reply) => {
        const revealed = await issueKey(parts, callerOf(request), request.body, request.headers['idempotency-key'])
        return reply.code(201).header('location', locationOf(revealed)).send(revealView(revealed))
      },
    )

    app.get(
      '/v1/keys',
      {
        config: { scope: 'keys:read' },
        schema: {
          ...documented('listKeys', 'List keys, newest first: metadata only'),
          querystring: ListQuery, response: responses({ 200: answer('A page of keys', KeyPage) }, ...ASKING),
        },
      },
      async ({ query, operator }) => {
        const { keys, now, next_cursor } = await page(parts, operator, 'mecha', query)
        return { keys: keys.map((key) => keyView(key, now)), next_cursor }
      },
    )

    app.get(
      '/v1/keys/:id',
      {
        config: { scope: 'keys:read' },
        schema: {
          ...documented('getKey', 'What is known of one key'),
          params: KeyParams, response: responses({ 200: answer('The key, without its plaintext', Type.Ref('Key#')) }, ...ASKING, 'not_found'),
        },
      },
      async ({ params, operator }) => {
        const [key, now] = await Promise.all([findKey(db, operator, 'mecha', uuidOf('mecha', params.id)), readClock(db)])
        if (!key) throw notFound()
        return { ...keyView(key, now), ...(key.revoked_at && { propagation: await receipts.of([key.id], { waitSeconds: 0, isRevocation: true }) }) }
      },
    )

    app.patch(
      '/v1/keys/:id',
      {
        config: { scope: 'keys:issue' },
        schema: {
          ...documented('updateKey', 'Change a key that has not ended'),
          params: KeyParams, headers: PreferHeaders, body: UpdateBody,
          response: responses({ 200: answer('The key as it is now', Type.Ref('Key#'), RECEIPT) }, ...TELLING, 'not_found', 'key_revoked', 'key_expired'),
        },
      },
      async (request, reply) => {
        const { key, now } = await updateKeyDetails(parts, callerOf(request), uuidOf('mecha', request.params.id), request.body)
        return { ...keyView(key, now), propagation: await receipt(parts, receipts, request, reply, [key.id], { isRevocation: false }) }
      },
    )

    app.post(
      '/v1/keys/:id/rotate',
      {
        config: { scope: 'keys:issue' },
        schema: {
          ...documented('rotateKey', 'Replace a key by a successor; both are valid until the overlap ends'),
          params: KeyParams, headers: RotateHeaders, body: Type.Optional(RotateBody),
          response: responses(
            { 201: revealing(RevealedKey, RECEIPT) },
            ...TELLING, 'not_found', 'key_revoked', 'key_expired', 'key_disabled', 'key_already_rotated', 'key_limit_reached', 'idempotent_key_in_use', 'idempotency_key_reused',
          ),
        },
      },
      async (request, reply) => {
        const body = request.body ?? {}
        const id = uuidOf('mecha', request.params.id)
        const revealed = await rotateKey(parts, callerOf(request), id, body, request.headers['idempotency-key'])
        reply.code(201).header('location', locationOf(revealed))
        return reply.send({ ...revealView(revealed), propagation: await receipt(parts, receipts, request, reply, [id], { isRevocation: false }) })
      },
    )

    app.post(
      '/v1/keys/:id/revoke',
      {
        config: { scope: 'keys:revoke' },
        schema: {
          ...documented('revokeKey', 'Revoke a key, for good'),
          params: KeyParams, headers: PreferHeaders, body: Type.Optional(RevokeBody),
          response: responses({ 200: answer('The key, revoked: by this call or by an earlier one', Type.Ref('Key#'), RECEIPT) }, ...TELLING, 'not_found'),
        },
      },
      async (request, reply) => {
        const { key, now } = await revoke(parts, callerOf(request), 'mecha', uuidOf('mecha', request.params.id), request.body?.reason)
        return { ...keyView(key, now), propagation: await receipt(parts, receipts, request, reply, [key.id], { isRevocation: true }) }
      },
    )

    app.post(
      '/v1/mechas/:mecha/revoke-keys',
      {
        config: { scope: 'keys:revoke' },
        schema: {
          ...documented('revokeKeysOfMecha', 'The kill switch: revoke every key of a Mecha'),
          params: Type.Object({ mecha: HandleSchema }), headers: PreferHeaders, body: Type.Optional(RevokeBody),
          response: responses({ 200: answer('What was revoked', KillSwitchAnswer, RECEIPT) }, ...TELLING, 'not_found'),
        },
      },
      async (request, reply) => {
        const { mecha } = request.params
        const { ids, revoked, remaining } = await revokeAllOfMecha(parts, callerOf(request), mecha, request.body?.reason)
        const keyIds = await findLatelyRevoked(db, mecha).catch((error: unknown) => {
          if (!databaseFailure(error)) throw error
        })
        const propagation = keyIds ? await receipt(parts, receipts, request, reply, keyIds, { isRevocation: true }) : null
        return { mecha, revoked: ids.map((id) => publicId('mecha', id)), revoked_count: revoked, remaining, propagation }
      },
    )
  }
}

function gatewayRoutes(parts: ControlParts, receipts: Receipts): FastifyPluginAsyncTypebox {
  return async (app) => {
    // A gateway verifies every key of its organization: more than an operator of some crews may hand out.
    app.addHook('onRequest', async ({ operator }) => {
      if (operator.crews) throw new Problem('crews_restricted', 'Gateways are for operators of the whole organization.')
    })

    app.post(
      '/v1/gateways',
      {
        config: { scope: 'gateways:manage' },
        schema: {
          ...documented('createGateway', 'Create a gateway credential. Its plaintext is in this answer and nowhere else, ever'),
          body: GatewayBody,
          response: responses({ 201: answer('The credential, and its plaintext', RevealedGateway) }, ...TELLING, 'crews_restricted'),
        },
      },
      async (request, reply) => {
        const { key, plaintext, now } = await createGateway(parts, { ...callerOf(request), crews: undefined }, request.body.name)
        return reply.code(201).send({ gateway: gatewayView(key, now), plaintext_key: plaintext })
      },
    )

    app.get(
      '/v1/gateways',
      {
        config: { scope: 'gateways:manage' },
        schema: {
          ...documented('listGateways', 'List gateway credentials, newest first: metadata only'),
          querystring: GatewayListQuery, response: responses({ 200: answer('A page of gateway credentials', GatewayPage) }, ...ASKING, 'crews_restricted'),
        },
      },
      async ({ query, operator }) => {
        const { keys, now, next_cursor } = await page(parts, operator, 'gateway', query)
        return { gateways: keys.map((key) => gatewayView(key, now)), next_cursor }
      },
    )

    app.post(
      '/v1/gateways/:id/revoke',
      {
        config: { scope: 'gateways:manage' },
        schema: {
          ...documented('revokeGateway', 'Revoke a gateway credential, for good'),
          params: Type.Object({ id: GatewayIdSchema }), headers: PreferHeaders, body: Type.Optional(RevokeBody),
          response: responses({ 200: answer('The credential, revoked: by this call or by an earlier one', Type.Ref('Gateway#'), RECEIPT) }, ...TELLING, 'crews_restricted', 'not_found'),
        },
      },
      async (request, reply) => {
        const { key, now } = await revoke(parts, callerOf(request), 'gateway', uuidOf('gateway', request.params.id), request.body?.reason)
        return { ...gatewayView(key, now), propagation: await receipt(parts, receipts, request, reply, [key.id], { isRevocation: true }) }
      },
    )
  }
}

function eventRoutes({ db }: ControlParts): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.get(
      '/v1/events',
      {
        config: { scope: 'audit:read' },
        schema: {
          ...documented('listEvents', 'Who did what, oldest first'),
          querystring: EventsQuery, response: responses({ 200: answer('A page of the audit trail', EventPage) }, ...ASKING),
        },
      },
      async ({ query, operator }) => {
        const { mecha, key_id, type, actor, after = '0', limit = 50 } = query
        const keyId = key_id && uuidOf(key_id.startsWith('gw_') ? 'gateway' : 'mecha', key_id)
        const [since, until] = [timeOf('since', query.since), timeOf('until', query.until)]
        const rows = await listEvents(db, operator, { mecha, keyId, type, actor, since, until, after, limit })
        return { events: rows.map(eventView), next_after: rows.at(-1)?.position ?? after }
      },
    )
  }
}

/** Every route names the scope that it needs: one that names none does not start. */
export function requireOperator(app: FastifyInstance, authenticate: OperatorAuthenticator): void {
  app.decorateRequest('operator')
  app.addHook('onRoute', ({ url, config, method, schema }) => {
    if (!config?.scope && method !== 'OPTIONS') throw new Error(`${String(method)} ${url} names no scope`)
    if (schema && config?.scope) Object.assign(schema, { 'security': [{ operator: [] }], 'x-scope': config.scope })
  })
  app.addHook('onRequest', async (request, reply) => {
    reply.header('cache-control', 'no-store')
    request.operator = await authenticate(request.headers.authorization)
    const scope = request.routeOptions.config.scope!
    if (request.operator.scopes.has(scope)) return
    throw new Problem('insufficient_scope', `The token lacks the scope ${scope}.`, {
      headers: { 'www-authenticate': `Bearer realm="mecha-keys", error="insufficient_scope", scope="${scope}"` },
    })
  })
}

/** What has come of a change that was made, waited for as long as the request prefers. */
async function receipt(
  parts: ControlParts,
  receipts: Receipts,
  request: { readonly headers: { readonly prefer?: string } },
  reply: FastifyReply,
  keyIds: readonly string[],
  { isRevocation }: { readonly isRevocation: boolean },
): Promise<Propagation | null> {
  const { seconds, isApplied } = preferredWait(request.headers.prefer)
  if (isApplied) reply.header('preference-applied', `wait=${seconds}`)
  const propagation = await receipts.of(keyIds, { waitSeconds: seconds, isRevocation })
  if (propagation) parts.onReceipt?.(propagation.elapsed_ms / 1000, propagation.complete)
  return propagation
}

function callerOf({ operator, id, ip }: FastifyRequest): Caller {
  const { actor, orgId, crews } = operator
  return { actor, orgId, crews, requestId: id, address: ip }
}

interface PageQuery {
  readonly mecha?: string
  readonly status?: ListFilter['status']
  readonly limit?: number
  readonly cursor?: string
}

/** One page, and where the next one starts. One row more than asked for is read, to know whether there is a next one. */
async function page({ db }: ControlParts, operator: Operator, kind: CredentialKind, query: PageQuery) {
  const { mecha, status, limit = 50, cursor } = query
  const after = cursor === undefined ? undefined : decodeCursor(cursor)
  const order = orderOfKeys(query)
  // A cursor by creation goes on in that order wherever it is given: the release before makes them for keys that have expired, too.
  if (cursor !== undefined && after?.by !== 'created_at' && after?.by !== order) throw invalid('query.cursor', 'format', 'must be the next_cursor of a page before')
  const { keys, now } = await listKeys(db, operator, { kind, mecha, status, limit: limit + 1, after })
  const shown = keys.slice(0, limit)
  return { keys: shown, now, next_cursor: keys.length > limit ? encodeCursor(shown.at(-1)!, after?.by ?? order) : null }
}

/** The route's schema has checked the shape, which a time that does not exist can have. */
function timeOf(name: string, text: string | undefined): Date | undefined {
  if (text === undefined) return undefined
  const time = new Date(text)
  if (Number.isNaN(time.getTime())) throw invalid(`query.${name}`, 'format', 'must be an RFC 3339 time that exists')
  return time
}

/** The route's schema has checked the shape. */
function uuidOf(kind: CredentialKind, id: string): string {
  return parsePublicId(kind, id)!
}

function locationOf({ key }: Revealed): string {
  return `/v1/keys/${publicId('mecha', key.id)}`
}

function revealView({ key, plaintext, now }: Revealed) {
  return { key: keyView(key, now), plaintext_key: plaintext }
}

function revealing(schema: typeof RevealedKey, headers: Record<string, string> = {}) {
  return answer('The key, and its plaintext', schema, { Location: 'Path of the key', ...headers })
}

function documented(operationId: string, summary: string) {
  return { tags: ['control'], operationId, summary }
}
