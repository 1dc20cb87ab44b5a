-- The feed cannot be evaded, emptied or answered for by somebody else.

-- A session that is told to be a replica (`session_replication_role`) fires no other triggers than these.
ALTER TABLE keys ENABLE ALWAYS TRIGGER keys_changed;
ALTER TABLE keys ENABLE ALWAYS TRIGGER keys_truncated;
ALTER TABLE keys ENABLE ALWAYS TRIGGER keys_keep_revocation;

-- Whoever removes or rewrites changes takes from followers what they have not heard: every key may have changed.
-- The sweep removes what nobody needs, and says so.
CREATE FUNCTION changes_removed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF TG_OP = 'DELETE' AND current_setting('mecha_keys.sweep', true) = 'on' THEN RETURN NULL; END IF;
  INSERT INTO changes (key_id) VALUES (NULL);
  PERFORM pg_notify('mecha_keys_changes', '');
  RETURN NULL;
END
$$;
CREATE TRIGGER changes_removed AFTER UPDATE OR DELETE OR TRUNCATE ON changes
  FOR EACH STATEMENT EXECUTE FUNCTION changes_removed();
ALTER TABLE changes ENABLE ALWAYS TRIGGER changes_removed;

-- How far changes have been swept. Who was told less than this begins anew: what it missed may be gone.
CREATE TABLE change_horizon (
  only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  swept_below xid8 NOT NULL
);
INSERT INTO change_horizon (swept_below) VALUES ('0');
GRANT SELECT ON change_horizon TO mecha_keys_runtime, mecha_keys_control;

-- A replica says in which history it follows, for how long it answers from memory without word, and proves with a secret
-- that the row is its own. All of it is NULL in rows of the previous release.
ALTER TABLE replicas
  ADD COLUMN history       text,
  ADD COLUMN bound_ms      integer CHECK (bound_ms > 0),
  -- Counts confirmations: whether a replica is alive is seen from this moving, and from no clock of the database.
  ADD COLUMN beat          bigint NOT NULL DEFAULT 0,
  ADD COLUMN secret_digest bytea CHECK (octet_length(secret_digest) = 32);

-- A row with a secret is written by the functions below, which run as the owner, and by nobody else. Others are not
-- refused but pass over it: the previous release sweeps rows that have been silent for long, and must not fail at that.
CREATE FUNCTION replicas_are_their_own() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER replicas_are_their_own BEFORE UPDATE OR DELETE ON replicas
  FOR EACH ROW WHEN (OLD.secret_digest IS NOT NULL) EXECUTE FUNCTION replicas_are_their_own();

-- Confirms that a replica has applied everything that a snapshot sees.
CREATE FUNCTION confirm_feed(replica uuid, secret bytea, seen pg_snapshot, seen_history text, bound integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF secret IS NULL OR octet_length(secret) < 16 THEN
    RAISE EXCEPTION 'a replica needs a secret of 16 bytes or more' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  INSERT INTO replicas AS mine (id, snapshot, seen_at, history, bound_ms, beat, secret_digest)
  VALUES (replica, seen, clock_timestamp(), seen_history, bound, 1, sha256(secret))
  ON CONFLICT (id) DO UPDATE
    SET snapshot = excluded.snapshot, seen_at = excluded.seen_at, history = excluded.history, bound_ms = excluded.bound_ms, beat = mine.beat + 1
    WHERE mine.secret_digest = excluded.secret_digest;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'this row is another replica''s' USING ERRCODE = 'insufficient_privilege';
  END IF;
END
$$;

-- Says goodbye: from now on the replica answers nothing.
CREATE FUNCTION leave_feed(replica uuid, secret bytea) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  DELETE FROM replicas WHERE id = replica AND secret_digest = sha256(secret)
$$;

-- Removes changes that were over when a snapshot was taken and that every follower has applied, and followers that have
-- been silent for long. Called too early it can only make followers begin anew, for it says how far it went.
CREATE FUNCTION sweep_changes(below pg_snapshot) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  horizon xid8;
BEGIN
  DELETE FROM replicas WHERE seen_at < clock_timestamp() - interval '1 hour';
  SELECT min(least(pg_snapshot_xmin(below), pg_snapshot_xmin(snapshot))) INTO horizon FROM replicas;
  horizon := coalesce(horizon, pg_snapshot_xmin(below));
  -- Nothing that may still be uncommitted, whatever was asked for.
  horizon := least(horizon, pg_snapshot_xmin(pg_current_snapshot()));
  UPDATE change_horizon SET swept_below = horizon WHERE swept_below < horizon;
  PERFORM set_config('mecha_keys.sweep', 'on', true);
  DELETE FROM changes WHERE xid < horizon;
  PERFORM set_config('mecha_keys.sweep', 'off', true);
END
$$;

REVOKE ALL ON FUNCTION confirm_feed, leave_feed, sweep_changes FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confirm_feed, leave_feed, sweep_changes TO mecha_keys_runtime;
-- The previous release sweeps with a DELETE of its own: it fails once an hour, and follows anew.
REVOKE DELETE ON changes FROM mecha_keys_runtime;
