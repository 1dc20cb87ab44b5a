/** Errors for OAuth clients: the same problems, with the members that such clients read (RFC 6749, section 5.2; RFC 7009, section 2.2.1). */

import formBody from '@fastify/formbody'
import type { FastifyInstance } from 'fastify'
import type { ErrorCode, Problem } from '../errors.js'
import { loggedProblem } from './problems.js'
import { Type } from './type.js'

export const OAuthErrorSchema = Type.Object(
  {
    error: Type.String({ description: 'What went wrong, for OAuth clients', examples: ['invalid_request'] }),
    error_description: Type.String({ description: 'What is wrong with this request, for people' }),
    type: Type.String({ description: 'Path of the page that explains this error', examples: ['/errors/invalid_request'] }),
    title: Type.String({ description: 'What the code means' }),
    status: Type.Integer({ description: 'The HTTP status' }),
    detail: Type.String({ description: 'What is wrong with this request, for people' }),
    code: Type.String({ description: 'Stable: programs decide by this', examples: ['invalid_request'] }),
  },
  { $id: 'OAuthError', title: 'OAuthError', description: 'An error as RFC 6749, section 5.2, has it, with the members of a problem' },
)

/** Codes that OAuth has a name for beside `invalid_request`. */
const NAMES: Partial<Record<ErrorCode, string>> = {
  unauthenticated: 'invalid_client',
  unsupported_grant_type: 'unsupported_grant_type',
  unsupported_token_type: 'unsupported_token_type',
  invalid_scope: 'invalid_scope',
  invalid_target: 'invalid_target',
  internal_error: 'server_error',
}

/** What a request of OAuth is sent as. */
export const FORM = 'application/x-www-form-urlencoded'

/** Makes a scope one of OAuth: it takes forms, and answers errors in this way. */
export async function speakOAuth(app: FastifyInstance): Promise<void> {
  answerErrors(app)
  app.removeAllContentTypeParsers()
  await app.register(formBody)
  app.addHook('onRequest', (_request, reply, done) => {
    reply.header('cache-control', 'no-store')
    done()
  })
}

function answerErrors(app: FastifyInstance): void {
  app.setErrorHandler((error, request, reply) => {
    const problem = loggedProblem(error, request)
    reply.refusal = problem
    return reply
      .code(problem.status)
      .headers({ 'cache-control': 'no-store', ...problem.extra.headers })
      .type('application/json')
      .serializer((body: unknown) => JSON.stringify(body))
      .send(oauthError(problem))
  })
}

/** The body: {@link OAuthErrorSchema}. */
export function oauthError(problem: Problem) {
  const { errors: _errors, ...members } = problem.toJSON()
  return { error: nameOf(problem), error_description: asDescription(problem.detail), ...members }
}

function nameOf({ code, status }: Problem): string {
  return NAMES[code] ?? (status === 503 || status === 429 ? 'temporarily_unavailable' : 'invalid_request')
}

/** RFC 6749 has neither quotes nor backslashes in it, and nothing that is not ASCII. */
function asDescription(detail: string): string {
  return detail.replace(/["\\]/g, "'").replace(/[^\x20-\x7e]/g, '?')
}
