/** The routes of keys, from issuing to the kill switch. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { databaseFailure } from '../../db/outage.js'
import { notFound } from '../../errors.js'
import { answer, HandleSchema, responses } from '../../http/schemas.js'
import { Type } from '../../http/type.js'
import { publicId } from '../../credentials/id.js'
import { RevokeBody } from '../common-schemas.js'
import { readClock } from '../database-clock.js'
import { callerOf, type ControlDeps } from '../deps.js'
import { receipt } from '../receipts/prefer.js'
import type { Receipts } from '../receipts/receipts.js'
import { PreferHeaders, RECEIPT_HEADER } from '../receipts/schemas.js'
import { documented, READ_ERRORS, uuidOf, WRITE_ERRORS } from '../route-options.js'
import { issueKey } from './issue.js'
import { revokeAllOfMecha } from './kill-switch.js'
import { listPage } from './list.js'
import type { Revealed } from './new-key.js'
import { revoke } from './revoke.js'
import { rotateKey } from './rotate.js'
import { IdempotencyHeaders, IssueBody, KeyIdSchema, KeyPage, KillSwitchAnswer, ListQuery, RevealedKey, RotateBody, RotateHeaders, UpdateBody } from './schemas.js'
import { findKey, findLatelyRevoked } from './store.js'
import { updateKeyDetails } from './update.js'
import { keyView, revealView } from './views.js'

export function keyRoutes(deps: ControlDeps, receipts: Receipts): FastifyPluginAsyncTypebox {
  const { db } = deps
  const KeyParams = Type.Object({ id: KeyIdSchema })
  return async (app) => {
    app.post(
      '/v1/keys',
      {
        config: { scope: 'keys:issue' },
        schema: {
          ...documented('issueKey', 'Issue a key. Its plaintext is in this answer and nowhere else, ever'),
          headers: IdempotencyHeaders, body: IssueBody,
          response: responses({ 201: revealing(RevealedKey) }, ...WRITE_ERRORS, 'not_found', 'key_limit_reached', 'idempotent_key_in_use', 'idempotency_key_reused'),
        },
      },
      async (request, reply) => {
        const revealed = await issueKey(deps, callerOf(request), request.body, request.headers['idempotency-key'])
        return reply.code(201).header('location', locationOf(revealed)).send(revealView(revealed))
      },
    )

    app.get(
      '/v1/keys',
      {
        config: { scope: 'keys:read' },
        schema: {
          ...documented('listKeys', 'List keys, newest first: metadata only'),
          querystring: ListQuery, response: responses({ 200: answer('A page of keys', KeyPage) }, ...READ_ERRORS),
        },
      },
      async ({ query, operator }) => {
        const { keys, now, next_cursor } = await listPage(deps, operator, 'mecha', query)
        return { keys: keys.map((key) => keyView(key, now)), next_cursor }
      },
    )

    app.get(
      '/v1/keys/:id',
      {
        config: { scope: 'keys:read' },
        schema: {
          ...documented('getKey', 'What is known of one key'),
          params: KeyParams, response: responses({ 200: answer('The key, without its plaintext', Type.Ref('Key#')) }, ...READ_ERRORS, 'not_found'),
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
          response: responses({ 200: answer('The key as it is now', Type.Ref('Key#'), RECEIPT_HEADER) }, ...WRITE_ERRORS, 'not_found', 'key_revoked', 'key_expired'),
        },
      },
      async (request, reply) => {
        const { key, now } = await updateKeyDetails(deps, callerOf(request), uuidOf('mecha', request.params.id), request.body)
        return { ...keyView(key, now), propagation: await receipt(deps, receipts, request, reply, [key.id], { isRevocation: false }) }
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
            { 201: revealing(RevealedKey, RECEIPT_HEADER) },
            ...WRITE_ERRORS, 'not_found', 'key_revoked', 'key_expired', 'key_disabled', 'key_already_rotated', 'key_limit_reached', 'idempotent_key_in_use', 'idempotency_key_reused',
          ),
        },
      },
      async (request, reply) => {
        const body = request.body ?? {}
        const id = uuidOf('mecha', request.params.id)
        const revealed = await rotateKey(deps, callerOf(request), id, body, request.headers['idempotency-key'])
        reply.code(201).header('location', locationOf(revealed))
        return reply.send({ ...revealView(revealed), propagation: await receipt(deps, receipts, request, reply, [id], { isRevocation: false }) })
      },
    )

    app.post(
      '/v1/keys/:id/revoke',
      {
        config: { scope: 'keys:revoke' },
        schema: {
          ...documented('revokeKey', 'Revoke a key, for good'),
          params: KeyParams, headers: PreferHeaders, body: Type.Optional(RevokeBody),
          response: responses({ 200: answer('The key, revoked: by this call or by an earlier one', Type.Ref('Key#'), RECEIPT_HEADER) }, ...WRITE_ERRORS, 'not_found'),
        },
      },
      async (request, reply) => {
        const { key, now } = await revoke(deps, callerOf(request), 'mecha', uuidOf('mecha', request.params.id), request.body?.reason)
        return { ...keyView(key, now), propagation: await receipt(deps, receipts, request, reply, [key.id], { isRevocation: true }) }
      },
    )

    app.post(
      '/v1/mechas/:mecha/revoke-keys',
      {
        config: { scope: 'keys:revoke' },
        schema: {
          ...documented('revokeKeysOfMecha', 'The kill switch: revoke every key of a Mecha'),
          params: Type.Object({ mecha: HandleSchema }), headers: PreferHeaders, body: Type.Optional(RevokeBody),
          response: responses({ 200: answer('What was revoked', KillSwitchAnswer, RECEIPT_HEADER) }, ...WRITE_ERRORS, 'not_found'),
        },
      },
      async (request, reply) => {
        const { mecha } = request.params
        const { ids, revoked, remaining } = await revokeAllOfMecha(deps, callerOf(request), mecha, request.body?.reason)
        const keyIds = await findLatelyRevoked(db, mecha).catch((error: unknown) => {
          if (!databaseFailure(error)) throw error
        })
        const propagation = keyIds ? await receipt(deps, receipts, request, reply, keyIds, { isRevocation: true }) : null
        return { mecha, revoked: ids.map((id) => publicId('mecha', id)), revoked_count: revoked, remaining, propagation }
      },
    )
  }
}

function locationOf({ key }: Revealed): string {
  return `/v1/keys/${publicId('mecha', key.id)}`
}

function revealing(schema: typeof RevealedKey, headers: Record<string, string> = {}) {
  return answer('The key, and its plaintext', schema, { Location: 'Path of the key', ...headers })
}
