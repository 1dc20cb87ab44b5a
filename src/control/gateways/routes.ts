/** The routes of gateway credentials. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Problem } from '../../errors.js'
import { answer, responses } from '../../http/schemas.js'
import { Type } from '../../http/type.js'
import { RevokeBody } from '../common-schemas.js'
import { callerOf, type ControlDeps } from '../deps.js'
import { listPage } from '../keys/list.js'
import { revoke } from '../keys/revoke.js'
import { receipt } from '../receipts/prefer.js'
import type { Receipts } from '../receipts/receipts.js'
import { PreferHeaders, RECEIPT_HEADER } from '../receipts/schemas.js'
import { documented, READ_ERRORS, uuidOf, WRITE_ERRORS } from '../route-options.js'
import { createGateway } from './create.js'
import { GatewayBody, GatewayIdSchema, GatewayListQuery, GatewayPage, RevealedGateway } from './schemas.js'
import { gatewayView } from './views.js'

export function gatewayRoutes(deps: ControlDeps, receipts: Receipts): FastifyPluginAsyncTypebox {
  return async (app) => {
    // A gateway verifies every key of its organization. An operator of some of its crews may not allow that.
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
          response: responses({ 201: answer('The credential, and its plaintext', RevealedGateway) }, ...WRITE_ERRORS, 'crews_restricted'),
        },
      },
      async (request, reply) => {
        const { key, plaintext, now } = await createGateway(deps, { ...callerOf(request), crews: undefined }, request.body.name)
        return reply.code(201).send({ gateway: gatewayView(key, now), plaintext_key: plaintext })
      },
    )

    app.get(
      '/v1/gateways',
      {
        config: { scope: 'gateways:manage' },
        schema: {
          ...documented('listGateways', 'List gateway credentials, newest first: metadata only'),
          querystring: GatewayListQuery, response: responses({ 200: answer('A page of gateway credentials', GatewayPage) }, ...READ_ERRORS, 'crews_restricted'),
        },
      },
      async ({ query, operator }) => {
        const { keys, now, next_cursor } = await listPage(deps, operator, 'gateway', query)
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
          response: responses({ 200: answer('The credential, revoked: by this call or by an earlier one', Type.Ref('Gateway#'), RECEIPT_HEADER) }, ...WRITE_ERRORS, 'crews_restricted', 'not_found'),
        },
      },
      async (request, reply) => {
        const { key, now } = await revoke(deps, callerOf(request), 'gateway', uuidOf('gateway', request.params.id), request.body?.reason)
        return { ...gatewayView(key, now), propagation: await receipt(deps, receipts, request, reply, [key.id], { isRevocation: true }) }
      },
    )
  }
}
