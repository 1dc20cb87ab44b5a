/** Which requests are for `/v1/authz`, whatever stands below it. */

export const PATH = '/v1/authz'
const TARGET = /^(?:https?:\/\/[^/?#]*)?\/v1\/authz(?=[/?#]|$)[^?]*/

/** Whether a request's target is `/v1/authz` or below. */
export function isForAuthz(target: string): boolean {
  return TARGET.test(target)
}

/** A target without what stands below `/v1/authz`, which may be any path at all: too long to route, or not to be decoded. */
export function withoutSubPath(target: string): string {
  return target.replace(TARGET, PATH)
}
