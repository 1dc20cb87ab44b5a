-- A database that went back is noticed. After a restore, revocations since the back-up are undone; nothing in the tables says
-- so, for they are as they were. What differs is what a restore cannot bring back: which database this is.
CREATE TABLE database_identity (
  only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  -- The database as it was when it was last accepted: see current_identity() and current_timeline().
  identity    text NOT NULL,
  timeline    text NOT NULL,
  -- When a replica missed changes that it had known.
  lost_at     timestamptz(3),
  accepted_at timestamptz(3) NOT NULL,
  accepted_by text NOT NULL
);
GRANT SELECT ON database_identity TO mecha_keys_control, mecha_keys_runtime;

-- The cluster, the database in it, and the two tables that the feed stands on. Their oids and not their files: a rewrite
-- (VACUUM FULL) is no restore.
CREATE FUNCTION current_identity() RETURNS text LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
  SELECT concat_ws(' ', (SELECT system_identifier FROM pg_control_system()), (SELECT oid FROM pg_database WHERE datname = current_database()),
                   to_regclass('public.keys')::oid, to_regclass('public.changes')::oid)
$$;

-- Another one after each promotion and each recovery to a point in time. A standby has none of its own.
CREATE FUNCTION current_timeline() RETURNS text LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
  SELECT CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END
$$;

-- Why nothing may be answered from this database until an operator, or a replica that knows better, has accepted it.
-- NULL: it is the one that was accepted.
CREATE FUNCTION restore_hold() RETURNS text LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
DECLARE
  accepted database_identity%ROWTYPE;
BEGIN
  SELECT * INTO accepted FROM database_identity;
  IF accepted.identity IS DISTINCT FROM current_identity() THEN RETURN 'restored'; END IF;
  IF accepted.lost_at IS NOT NULL THEN RETURN 'lost'; END IF;
  IF accepted.timeline <> current_timeline() THEN RETURN 'timeline'; END IF;
  RETURN NULL;
END
$$;

-- Accepts the database as it is. For the owner alone, and what it is restored and migrated by.
CREATE FUNCTION accept_database(whose text) RETURNS void LANGUAGE sql SET search_path = public, pg_temp AS $$
  INSERT INTO database_identity (identity, timeline, accepted_at, accepted_by) VALUES (current_identity(), current_timeline(), clock_timestamp(), whose)
  ON CONFLICT (only_row) DO UPDATE
    SET identity = excluded.identity, timeline = excluded.timeline, lost_at = NULL, accepted_at = excluded.accepted_at, accepted_by = excluded.accepted_by
$$;
SELECT accept_database('migrate');

-- A replica that comes back says how often it had confirmed the feed when it last heard of a change, and under which
-- timeline. The count is in its own row: what a server has of the log is a beginning of it, so where the row is not behind,
-- nothing that came before it is missing. Then a new timeline is a failover that lost nothing that this replica knew, and is
-- accepted. Where the row is behind, acknowledged changes are gone, and nobody may answer. Where there is no such row,
-- nobody can say, and nothing changes.
CREATE FUNCTION recall_feed(replica uuid, secret bytea, known_timeline text, known_beat bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  kept bigint;
BEGIN
  SELECT beat INTO kept FROM replicas WHERE id = replica AND secret_digest = sha256(secret);
  IF kept IS NULL THEN RETURN; END IF;
  IF kept < known_beat THEN
    UPDATE database_identity SET lost_at = clock_timestamp() WHERE lost_at IS NULL AND identity = current_identity();
  ELSE
    UPDATE database_identity SET timeline = current_timeline(), accepted_at = clock_timestamp(), accepted_by = 'replica ' || replica
    WHERE identity = current_identity() AND timeline = known_timeline AND timeline <> current_timeline();
  END IF;
END
$$;

REVOKE ALL ON FUNCTION current_identity, current_timeline, restore_hold, accept_database, recall_feed FROM PUBLIC;
GRANT EXECUTE ON FUNCTION current_identity, current_timeline, restore_hold TO mecha_keys_control, mecha_keys_runtime;
GRANT EXECUTE ON FUNCTION recall_feed TO mecha_keys_runtime;
