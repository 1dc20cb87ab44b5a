/** A client of mecha-keys made by openapi-typescript: issues, verifies, changes with null, and revokes without a body. */

import createClient from 'openapi-fetch'
import type { paths } from './api.js'

const { MECHA_KEYS_URL: baseUrl = '', OPERATOR_TOKEN, GATEWAY_CREDENTIAL } = process.env
const operator = createClient<paths>({ baseUrl, headers: { authorization: `Bearer ${OPERATOR_TOKEN}` } })
const gateway = createClient<paths>({ baseUrl, headers: { authorization: `Bearer ${GATEWAY_CREDENTIAL}` } })

const { key, plaintext_key } = answered(await operator.POST('/v1/keys', { body: { mecha: 'sales^acmecorp', name: 'typescript' } }))
const good = await verify()
const path = { id: key.id }
const changed = answered(await operator.PATCH('/v1/keys/{id}', { params: { path }, body: { name: null, expires_at: null } }))
// Many clients name the type of a body that they leave out.
const revoked = answered(await operator.POST('/v1/keys/{id}/revoke', { params: { path }, headers: { 'content-type': 'application/json' } }))
const bad = await verify()
const { error } = await operator.PATCH('/v1/keys/{id}', { params: { path: { id: 'nothing' } }, body: {} })

console.log(JSON.stringify({
  id: key.id,
  handle: good.valid ? good.mecha.handle : undefined,
  name_is_null: changed.name === null,
  status: revoked.status,
  complete: revoked.propagation?.complete,
  refused_for: bad.valid ? undefined : bad.code,
  errors: error?.errors?.length,
}))

async function verify() {
  return answered(await gateway.POST('/v1/verify', { body: { key: plaintext_key } }))
}

function answered<T>({ data, error }: { data?: T; error?: unknown }): NonNullable<T> {
  if (data === undefined || data === null) throw new Error(JSON.stringify(error))
  return data
}
