/** The schemas of all capabilities together, for whoever looks through every one of them. */

export * from './nonces/schemas.js'
export * from './oauth/schemas.js'
export * from './revalidate/schemas.js'
export * from './usage/schemas.js'
export * from './verify/schemas.js'
