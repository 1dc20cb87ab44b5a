/** The route by which operators read the audit trail of their organization. */

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { invalid } from '../../errors.js'
import { answer, responses } from '../../http/schemas.js'
import type { ControlDeps } from '../deps.js'
import { documented, READ_ERRORS, uuidOf } from '../route-options.js'
import { EventPage, EventsQuery } from './schemas.js'
import { listEvents } from './store.js'
import { eventView } from './views.js'

export function eventRoutes({ db }: ControlDeps): FastifyPluginAsyncTypebox {
  return async (app) => {
    app.get(
      '/v1/events',
      {
        config: { scope: 'audit:read' },
        schema: {
          ...documented('listEvents', 'Who did what, oldest first'),
          querystring: EventsQuery, response: responses({ 200: answer('A page of the audit trail', EventPage) }, ...READ_ERRORS),
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

/** The route's schema has checked the shape of a time, but not whether it exists. */
function timeOf(name: string, text: string | undefined): Date | undefined {
  if (text === undefined) return undefined
  const time = new Date(text)
  if (Number.isNaN(time.getTime())) throw invalid(`query.${name}`, 'format', 'must be an RFC 3339 time that exists')
  return time
}
