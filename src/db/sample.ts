/** A part of the keys that is never too many to look at. */

import { sql } from 'kysely'

/** Blocks of the table that are looked at, of 8 KiB: all of one that has some 40,000 keys, and an even sample of a larger one. */
const MOST_BLOCKS = 2000

/** For `TABLESAMPLE SYSTEM`: how many per cent of `keys` that is. */
export const SAMPLE_PERCENT = sql<number>`least(100, 100.0 * ${sql.lit(MOST_BLOCKS)} * current_setting('block_size')::int / greatest(pg_relation_size('keys'), 1))::real`
