/** What the API takes and says of gateway credentials. */

import type { Static } from 'typebox'
import { Type } from '../../http/type.js'
import { ID_PATTERN } from '../../credentials/id.js'
import { beginning, CurrentStatus, EXAMPLE_ID, Limit, Name, NextCursor, OnlyStatus, OrgId, PageCursor, plaintextKey, strict, useAndEnd } from '../common-schemas.js'
import { PropagationSchema } from '../receipts/schemas.js'

export const GatewayIdSchema = Type.String({
  pattern: `^gw_${ID_PATTERN}$`, 'x-rule': `must be a gateway id, as in gw_${EXAMPLE_ID}`,
  description: 'Id of a gateway credential. It is no secret', examples: [`gw_${EXAMPLE_ID}`],
})

export const GatewaySchema = Type.Object(
  {
    id: GatewayIdSchema,
    org_id: OrgId,
    name: Name,
    status: CurrentStatus,
    ...beginning,
    ...useAndEnd,
    propagation: Type.Optional(PropagationSchema),
  },
  { $id: 'Gateway', title: 'Gateway', description: 'What is known of a gateway credential' },
)

export const RevealedGateway = Type.Object({
  gateway: Type.Ref('Gateway#'),
  plaintext_key: plaintextKey('The credential. Shown now and never again'),
}, { title: 'RevealedGateway' })

export const GatewayBody = Type.Object({ name: Name }, strict('GatewayBody', { name: 'edge-eu-1' }))

export const GatewayListQuery = Type.Object(
  { status: Type.Optional(OnlyStatus), limit: Type.Optional(Limit), cursor: Type.Optional(PageCursor) },
  { additionalProperties: false },
)

export const GatewayPage = Type.Object({ gateways: Type.Array(Type.Ref('Gateway#')), next_cursor: NextCursor }, { title: 'GatewayPage' })

export type GatewayBodyOut = Static<typeof GatewaySchema>
