-- Whoever has the status list in memory reads on from where it stood: which of its indexes were given to a key by a transaction
-- that was not over by then. What else changes a status is told by `changes`, and by the time at which keys expire.

-- NULL: before this migration, or free. An index that is free has the status of the key that it was of until another one has it.
-- Kept from everybody for a quarter of a second for each million indexes, which is what the index takes.
ALTER TABLE token_status ADD COLUMN xid xid8;
ALTER TABLE token_status ALTER COLUMN xid SET DEFAULT pg_current_xact_id();
CREATE INDEX token_status_by_xid ON token_status (xid) WHERE xid IS NOT NULL;

CREATE OR REPLACE FUNCTION token_status_begins_anew() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  NEW.key_erased_at := NULL;
  NEW.xid := CASE WHEN NEW.key_id IS NOT NULL THEN pg_current_xact_id() END;
  RETURN NEW;
END
$$;
ALTER TABLE token_status ENABLE ALWAYS TRIGGER token_status_begins_anew;

-- A status is 0 (VALID), 1 (INVALID: revoked, expired, or the row is gone) or 2 (SUSPENDED: disabled, and can come back). Each key is looked up:
-- a join could be planned as a walk through all of them, and a function for it costs four times as much.

-- The statuses of indexes from one on and below another that are not 0. Those that are free are.
CREATE FUNCTION token_statuses_between(first integer, below integer, OUT indexes integer[], OUT statuses integer[])
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp SET jit = off SET enable_seqscan = off AS $$
BEGIN
  SELECT coalesce(array_agg(idx), '{}'), coalesce(array_agg(status), '{}') INTO indexes, statuses
  FROM (
    SELECT idx, coalesce((SELECT CASE WHEN revoked_at IS NOT NULL OR expires_at <= statement_timestamp() THEN 1 WHEN enabled THEN 0 ELSE 2 END FROM keys WHERE id = key_id), 1) AS status
    FROM token_status WHERE idx >= first AND idx < below AND key_id IS NOT NULL OFFSET 0) AS read
  WHERE status <> 0;
END
$$;

-- The statuses that may have changed since somebody read: by what the snapshot of then did not see, of changes and of indexes that were given
-- to a key; and by keys that have expired since. Ends are found by the index keys_by_root, for each pair of root secrets in it: the comparison of
-- rows is what no other index could be used for. Planned once a connection, by an index each: what the planner believes of tables that change
-- all the time must not make it read all of one, and to compile this would cost more than all that it does.
CREATE FUNCTION token_status_changes(since pg_snapshot, ended_after timestamptz, run integer,
  OUT now timestamptz, OUT places integer, OUT is_complete boolean, OUT indexes integer[], OUT statuses integer[])
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  -- More that changed are not read one by one.
  most CONSTANT integer := 10000;
  -- Keys expire at milliseconds: what ends between two of these instants is all that does.
  instant CONSTANT timestamptz := date_trunc('milliseconds', statement_timestamp());
  found_in_all integer;
  is_named boolean;
BEGIN
  WITH RECURSIVE pairs AS (
    (SELECT tag_root, pepper_root FROM keys WHERE revoked_at IS NULL ORDER BY tag_root, pepper_root LIMIT 1)
    UNION ALL
    SELECT following.tag_root, following.pepper_root FROM pairs, LATERAL (
      SELECT tag_root, pepper_root FROM keys WHERE revoked_at IS NULL AND (keys.tag_root, keys.pepper_root) > (pairs.tag_root, pairs.pepper_root)
      ORDER BY tag_root, pepper_root LIMIT 1) AS following
  ), ended AS MATERIALIZED (
    SELECT id FROM pairs, LATERAL (
      SELECT id FROM keys
      WHERE revoked_at IS NULL AND (keys.tag_root, keys.pepper_root, expires_at) > (pairs.tag_root, pairs.pepper_root, ended_after)
        AND (keys.tag_root, keys.pepper_root, expires_at) <= (pairs.tag_root, pairs.pepper_root, instant)
      ORDER BY keys.tag_root, keys.pepper_root, expires_at LIMIT most + 1) AS soonest
  ), changed AS MATERIALIZED (
    (SELECT key_id FROM changes WHERE xid >= pg_snapshot_xmax(since) ORDER BY xid LIMIT most + 1)
    UNION ALL (SELECT key_id FROM changes WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(since))) LIMIT most + 1)
  ), given AS MATERIALIZED (
    (SELECT idx FROM token_status WHERE xid >= pg_snapshot_xmax(since) ORDER BY xid LIMIT most + 1)
    UNION ALL (SELECT idx FROM token_status WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(since))) LIMIT most + 1)
  ), touched AS (
    SELECT idx FROM given
    UNION SELECT (SELECT idx FROM token_status WHERE key_id = changed.key_id) FROM changed
    UNION SELECT (SELECT idx FROM token_status WHERE key_id = ended.id) FROM ended
  ), read AS (
    SELECT idx, (SELECT CASE WHEN key_id IS NULL THEN 0 ELSE coalesce(
      (SELECT CASE WHEN revoked_at IS NOT NULL OR expires_at <= instant THEN 1 WHEN enabled THEN 0 ELSE 2 END FROM keys WHERE id = key_id), 1) END FROM token_status WHERE token_status.idx = touched.idx) AS status
    FROM touched WHERE idx IS NOT NULL
  )
  SELECT coalesce(array_agg(idx), '{}'), coalesce(array_agg(status), '{}'), (SELECT count(*) FROM ended) + (SELECT count(*) FROM changed) + (SELECT count(*) FROM given),
         NOT EXISTS (SELECT FROM changed WHERE key_id IS NULL)
  INTO indexes, statuses, found_in_all, is_named FROM read;
  now := instant;
  places := coalesce((SELECT max(idx) + 1 FROM token_status), 0);
  -- Snapshots are compared within one run of the server, of which a follower of the feed holds the lock (src/db/followers.ts), and while
  -- nothing is swept that the first of them did not see.
  is_complete := coalesce(is_named AND found_in_all <= most
    AND (SELECT swept_below <= pg_snapshot_xmin(since) FROM change_horizon)
    AND EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 1835361128 AND objid = run::oid AND objsubid = 2 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())), false);
END
$$;

REVOKE ALL ON FUNCTION token_statuses_between, token_status_changes FROM PUBLIC;
GRANT EXECUTE ON FUNCTION token_statuses_between, token_status_changes TO mecha_keys_runtime;

-- Accepts the database as it is. Numbers of transactions that are still to come were given by the server that it was copied from: what
-- bears one would be new to every follower until they have come here as well.
CREATE OR REPLACE FUNCTION accept_database(whose text) RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  newest xid8 := pg_current_xact_id();
BEGIN
  INSERT INTO database_identity (identity, timeline, accepted_at, accepted_by, verified_in)
  VALUES (current_identity(), current_timeline(), clock_timestamp(), whose, unheld_history())
  ON CONFLICT (only_row) DO UPDATE
    SET identity = excluded.identity, timeline = excluded.timeline, lost_at = NULL, accepted_at = excluded.accepted_at, accepted_by = excluded.accepted_by,
        verified_in = excluded.verified_in;
  UPDATE change_horizon SET swept_below = pg_snapshot_xmax(pg_current_snapshot()) WHERE swept_below > newest;
  UPDATE token_status SET xid = NULL WHERE xid > newest;
  -- Tells followers that every key may have changed.
  IF EXISTS (SELECT FROM changes WHERE xid > newest) THEN DELETE FROM changes WHERE xid > newest; END IF;
END
$$;
