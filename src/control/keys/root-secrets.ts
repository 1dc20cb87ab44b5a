/** Which root secrets are still needed, before one is dropped. */

import { sql, type Kysely } from 'kysely'
import { SAMPLE_PERCENT } from '../../db/sample.js'
import type { Database } from '../../db/tables.js'
import type { Roots } from '../../credentials/roots.js'

export interface RootStatus {
  /** Public name of the root secret, as rows carry it. */
  readonly id: string
  /** `newest` makes keys, `older` verifies them, `missing` is needed and not configured. */
  readonly role: 'newest' | 'older' | 'missing'
  /** Living keys whose tag was made under it: they are refused without it, until they are rotated or end. */
  readonly tagged: number
  /** Living keys whose hash is peppered under it: their next verify moves them to the newest. */
  readonly peppered: number
  /** Signing keys that are sealed under it: the control plane's next start moves them to the newest. */
  readonly sealed: number
  /** Whether it can be dropped without refusing a living key, or losing a signing key. */
  readonly droppable: boolean
}

/** One entry for each root secret that is configured or needed, newest first. */
export async function rootSecretsStatus(db: Kysely<Database>, roots: Roots): Promise<RootStatus[]> {
  const { rows } = await sql<{ id: string; tagged: number; peppered: number; sealed: number }>`
    -- Each pair that there is, from one to the next in the index keys_by_root, and how many entries of it are alive: no row is read.
    WITH RECURSIVE pairs AS (
      (SELECT tag_root, pepper_root FROM keys WHERE revoked_at IS NULL ORDER BY tag_root, pepper_root LIMIT 1)
      UNION ALL
      SELECT following.tag_root, following.pepper_root FROM pairs, LATERAL (
        SELECT tag_root, pepper_root FROM keys WHERE revoked_at IS NULL AND (keys.tag_root, keys.pepper_root) > (pairs.tag_root, pairs.pepper_root)
        ORDER BY tag_root, pepper_root LIMIT 1) AS following
    ), living AS MATERIALIZED (
      SELECT tag_root, pepper_root, endless.keys + ending.keys AS keys FROM pairs,
        LATERAL (SELECT count(*) AS keys FROM keys WHERE revoked_at IS NULL AND keys.tag_root = pairs.tag_root AND keys.pepper_root = pairs.pepper_root AND expires_at IS NULL) AS endless,
        LATERAL (SELECT count(*) AS keys FROM keys WHERE revoked_at IS NULL AND keys.tag_root = pairs.tag_root AND keys.pepper_root = pairs.pepper_root AND expires_at > now()) AS ending
    )
    SELECT id, sum(tagged)::int AS tagged, sum(peppered)::int AS peppered, sum(sealed)::int AS sealed FROM (
      SELECT tag_root AS id, keys AS tagged, 0 AS peppered, 0 AS sealed FROM living
      -- A pepper is named by its root, and from the second version of the hash input on by that version too.
      UNION ALL SELECT split_part(pepper_root, '/', 1), 0, keys, 0 FROM living
      UNION ALL SELECT root, 0, 0, 1 FROM signing_keys
    ) AS needs GROUP BY id`.execute(db)
  const needs = new Map(rows.map((row) => [row.id, row]))
  const configured = roots.map(({ id }) => id)
  const missing = rows.map(({ id }) => id).filter((id) => !configured.includes(id))
  return [...configured, ...missing].map((id) => {
    const { tagged, peppered, sealed } = needs.get(id) ?? { tagged: 0, peppered: 0, sealed: 0 }
    const role = !configured.includes(id) ? 'missing' : id === configured[0] ? 'newest' : 'older'
    return { id, role, tagged, peppered, sealed, droppable: role === 'older' && tagged + peppered + sealed === 0 }
  })
}

/**
 * A root secret that is not configured, and that living keys or signing keys need. Of a large table a sample is read: it finds out that
 * these are the root secrets of another database, but may miss that one key among a million needs another root secret.
 */
export async function missingRootSecret(db: Kysely<Database>, roots: Roots): Promise<string | undefined> {
  const { rows } = await sql<{ id: string }>`
    SELECT id FROM (
      SELECT unnest(ARRAY[tag_root, split_part(pepper_root, '/', 1)]) AS id FROM keys TABLESAMPLE SYSTEM (${SAMPLE_PERCENT})
      WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
      UNION ALL SELECT root FROM signing_keys
    ) AS needed WHERE id <> ALL (${roots.map(({ id }) => id)}::text[]) LIMIT 1`.execute(db)
  return rows[0]?.id
}
