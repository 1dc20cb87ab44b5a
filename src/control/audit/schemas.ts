/** What the API says of audit events, and what it takes to list them. */

import type { Static } from 'typebox'
import { nullableText, TimeSchema } from '../../http/schemas.js'
import { Type } from '../../http/type.js'
import { ID_PATTERN } from '../../credentials/id.js'
import { EXAMPLE_ID, Limit, line, OnlyMecha } from '../common-schemas.js'
import { EVENT_TYPES } from './events.js'

const EventType = Type.Unsafe<(typeof EVENT_TYPES)[number]>({ type: 'string', enum: [...EVENT_TYPES], description: 'What happened', examples: ['key.issued'] })

export const EventSchema = Type.Object(
  {
    id: Type.String({ description: 'Position in the audit trail, in the order of commits. Pass it as `after`' }),
    at: TimeSchema,
    type: EventType,
    key_id: Type.String({ description: 'Id of the key or of the gateway credential' }),
    mecha: nullableText('The Mecha; null for a gateway credential'),
    actor: Type.String({ description: 'Who did it: `operator:` and the `sub` of their token, `builtin:` for a token of the built-in issuer, `cli:` and a user, or `holder` for who presented the key itself' }),
    request_id: Type.String({ description: 'The `X-Request-Id` of the answer, which the log has too' }),
    address: Type.String({ description: 'Where the request came from' }),
    data: Type.Object({}, { title: 'EventData', additionalProperties: true, description: 'What is particular to the type' }),
  },
  { $id: 'Event', title: 'Event', description: 'An entry of the audit trail' },
)

export const EventsQuery = Type.Object(
  {
    mecha: Type.Optional(OnlyMecha),
    key_id: Type.Optional(Type.String({
      pattern: `^(key|gw)_${ID_PATTERN}$`, 'x-rule': 'must be a key id or a gateway id',
      description: 'Only those of this key or gateway credential', examples: [`key_${EXAMPLE_ID}`],
    })),
    type: Type.Optional(EventType),
    actor: Type.Optional(line(300, 'Only what they did: as events show it')),
    since: Type.Optional(Type.String({ ...TimeSchema, description: 'Only what happened at this time or later. RFC 3339. Times are the database\'s: what was written before its clock was set back by more than a day may be left out' })),
    until: Type.Optional(Type.String({ ...TimeSchema, description: 'Only what happened before this time. RFC 3339' })),
    after: Type.Optional(Type.String({
      pattern: '^[0-9]{1,18}$', 'x-rule': 'must be the id of an event',
      description: '`next_after` of the page before; from the start without it', examples: ['0'],
    })),
    limit: Type.Optional(Limit),
  },
  { additionalProperties: false },
)

export const EventPage = Type.Object({
  events: Type.Array(Type.Ref('Event#')),
  next_after: Type.String({ description: 'Pass it as `after` to go on, now or later: no event is skipped' }),
}, { title: 'EventPage' })

export type EventBody = Static<typeof EventSchema>
