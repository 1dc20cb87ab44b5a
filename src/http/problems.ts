/** Every error leaves as an RFC 9457 problem with a code of the catalogue, and nothing of its cause. */

import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import { causeOf, databaseFailure, isReadOnly } from '../db/outage.js'
import { invalidRequest, Problem, type ErrorCode } from '../errors.js'
import { brokenRules, fieldError } from './validation-errors.js'
import { Type } from './type.js'

declare module 'fastify' {
  interface FastifyReply {
    /** What the request was refused with: for its line in the log, and to be counted. */
    refusal: Problem | undefined
  }
}

export const PROBLEM_JSON = 'application/problem+json'

export const ProblemSchema = Type.Object(
  {
    type: Type.String({ description: 'Path of the page that explains this error', examples: ['/errors/not_found'] }),
    title: Type.String({ description: 'What the code means' }),
    status: Type.Integer({ description: 'The HTTP status' }),
    detail: Type.String({ description: 'What is wrong with this request, for people' }),
    code: Type.String({ description: 'Stable: programs decide by this', examples: ['not_found'] }),
    errors: Type.Optional(
      Type.Array(
        Type.Object({
          field: Type.String({ description: 'Where: `body.expires_in`, `query.limit`' }),
          rule: Type.String({ description: 'The rule that it breaks' }),
          message: Type.String({ description: 'What would be right' }),
        }, { title: 'BrokenRule' }),
        { description: 'Every rule that the request breaks, of an `invalid_request`; 100 at most. Names that the caller chose are masked where they look like a secret, and cut' },
      ),
    ),
  },
  { $id: 'Problem', title: 'Problem', description: 'An error, as RFC 9457 has it' },
)

/** What Fastify and Node.js find wrong before a handler runs. */
const FRAMEWORK_ERRORS: Record<string, [code: ErrorCode, detail: string]> = {
  FST_ERR_CTP_INVALID_JSON_BODY: ['malformed_body', 'The body is not JSON.'],
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: ['malformed_body', 'The body is not as long as its Content-Length says.'],
  FST_ERR_BAD_URL: ['invalid_request', 'The path is not a valid URL path.'],
  FST_ERR_MAX_PARAM_LENGTH: ['uri_too_long', 'A part of the path is too long.'],
}

const READ_ONLY = 'The database cannot be written to just now. Try again in a moment.'
const TOO_LONG = 'The database did not finish this in time, and undid what it had begun. Try again in a moment, or ask for less.'

export function answerProblem(reply: FastifyReply, problem: Problem): FastifyReply {
  reply.refusal = problem
  return reply
    .code(problem.status)
    .headers({ 'cache-control': 'no-store', ...problem.extra.headers })
    .type(PROBLEM_JSON)
    .serializer((body: unknown) => JSON.stringify(body))
    .send(problem.toJSON())
}

/** The problem that a caller is told for an error. An unexpected error becomes an `internal_error` that tells nothing of its cause. */
export function toProblem(error: unknown, request?: FastifyRequest): Problem {
  if (error instanceof Problem) return error
  const { code, validation, validationContext, statusCode } = error as FastifyError & { validationContext?: string }
  if (validation && request) return invalidRequest(brokenRules(request, validation.map((one) => fieldError(validationContext ?? 'body', one))))
  const { bodyLimit = 0, schema } = request?.routeOptions ?? {}
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE') return new Problem('body_too_large', `A body may have ${bodyLimit / 1024} KiB at most here.`)
  if (code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE') return new Problem('unsupported_media_type', `Send ${schema?.consumes?.join() ?? 'application/json'}.`)
  const known = FRAMEWORK_ERRORS[code]
  if (known) return new Problem(...known)
  // secure-json-parse's refusal of "__proto__", and JSON.parse's of anything else, carry a status and no code.
  if (error instanceof SyntaxError || statusCode === 400) return new Problem('malformed_body', 'The body is not JSON.')
  const failure = databaseFailure(error)
  if (failure === 'unavailable') return new Problem('database_unavailable', isReadOnly(error) ? READ_ONLY : 'Try again in a moment.', { headers: { 'retry-after': '1' } })
  if (failure === 'cancelled') return new Problem('overloaded', TOO_LONG, { headers: { 'retry-after': '1' } })
  return new Problem('internal_error', 'The request id in X-Request-Id finds the cause in the log.')
}

/** As {@link toProblem}, and logs the cause that the caller is not told. */
export function loggedProblem(error: unknown, request: FastifyRequest): Problem {
  const problem = toProblem(error, request)
  const { code } = problem
  // A stack trace helps with a mistake in this code. An outage refuses thousands of requests, and their stacks say nothing about it.
  if (code === 'internal_error') request.log.error({ err: error, code }, 'request failed')
  // A shed request is counted and has its line in the request log. A second line would cost the work that shedding saves.
  else if (problem.status >= 500 && !isShed(error)) request.log.warn({ code, cause: error instanceof Problem ? error.detail : causeOf(error) }, 'request refused')
  return problem
}

export function isShed(error: unknown): error is Problem {
  return error instanceof Problem && error.code === 'overloaded'
}
