import type { CallCounts } from '../../http/rate-limit.js'
import type { Verifier } from '../verify/verifier.js'
import type { Keyring } from './keyring.js'
import type { StatusPlaces } from './status-list-index.js'
import type { StatusList } from './status-list.js'

/** What the OAuth side of the runtime plane is given. */
export interface OAuthParts {
  readonly verifier: Verifier
  readonly keyring: Keyring
  readonly places: StatusPlaces
  readonly statusList: StatusList
  /** The base URL of the service, without a slash at its end. Where it follows from the listener, it is known when that is. */
  readonly issuer: () => string
  /** Life of an exchanged JWT. */
  readonly ttlSeconds: number
  /** How often each key (UUID) was exchanged. */
  readonly exchanges: CallCounts
  /** Most exchanges of one key, and most calls of `/v1/token` of one address, in a minute. */
  readonly perMinute: { readonly key: number; readonly address: number }
}
