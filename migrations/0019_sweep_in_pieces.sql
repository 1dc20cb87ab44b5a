-- Changes are swept some at a time: an hour of them in one statement took longer than a statement may, and took the feed with it.

-- Removes some changes, of those that were over when a snapshot was taken and that every follower has applied; and followers that have been
-- silent for long. Called too early it can only make followers begin anew, for it says how far it may go before it begins.
--
-- Returns the transaction to go on from, since those before it are gone: to begin at the first again would be to read what was deleted
-- again each time. NULL: nothing is left, or somebody else sweeps.
CREATE FUNCTION sweep_changes(below pg_snapshot, since xid8, most integer) RETURNS xid8
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  horizon xid8;
  swept bigint;
  reached xid8;
BEGIN
  -- A number of its own: 20826 with a name is an organization's lock, whatever that is called.
  IF NOT pg_try_advisory_xact_lock(20830) THEN RETURN NULL; END IF;
  DELETE FROM replicas WHERE seen_at < clock_timestamp() - interval '1 hour';
  SELECT min(least(pg_snapshot_xmin(below), pg_snapshot_xmin(snapshot))) INTO horizon FROM replicas;
  horizon := coalesce(horizon, pg_snapshot_xmin(below));
  -- Nothing that may still be uncommitted, whatever was asked for.
  horizon := least(horizon, pg_snapshot_xmin(pg_current_snapshot()));
  UPDATE change_horizon SET swept_below = horizon WHERE swept_below < horizon;
  PERFORM set_config('mecha_keys.sweep', 'on', true);
  WITH removed AS (
    DELETE FROM changes
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM changes WHERE xid >= since AND xid < horizon ORDER BY xid LIMIT least(most, 10000)))
    RETURNING xid
  )
  SELECT count(*), max(xid) INTO swept, reached FROM removed;
  PERFORM set_config('mecha_keys.sweep', 'off', true);
  RETURN CASE WHEN swept = least(most, 10000) THEN reached END;
END
$$;
REVOKE ALL ON FUNCTION sweep_changes(pg_snapshot, xid8, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sweep_changes(pg_snapshot, xid8, integer) TO mecha_keys_runtime;

-- The previous release asks for everything at once, and gets the first piece.
CREATE OR REPLACE FUNCTION sweep_changes(below pg_snapshot) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT sweep_changes(below, '0', 10000)
$$;
