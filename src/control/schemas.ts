/** Every schema of the control plane: where secret fields are found, and the components of the contract. */

export * from './audit/schemas.js'
export * from './gateways/schemas.js'
export * from './keys/schemas.js'
export * from './receipts/schemas.js'
