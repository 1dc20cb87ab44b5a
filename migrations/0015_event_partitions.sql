-- Events can be kept for a time: `events` becomes a table of partitions by time, which its owner drops as a whole. No row is copied
-- and none is read. What is there becomes the partition for all times that no other one is for, `events_open`, and
-- `mecha-keys events expire` makes the others.

LOCK TABLE events IN ACCESS EXCLUSIVE MODE;

ALTER TABLE events RENAME TO events_open;
ALTER INDEX events_pkey RENAME TO events_open_pkey;
ALTER INDEX events_by_org RENAME TO events_open_org_id_position_idx;
ALTER INDEX events_by_mecha RENAME TO events_open_mecha_position_idx;
ALTER INDEX events_by_key RENAME TO events_open_key_id_position_idx;
-- The table of partitions has one of its own, for all of them.
DROP TRIGGER events_tell_of_changes ON events_open;
REVOKE ALL ON events_open FROM mecha_keys_control;

CREATE TABLE events (LIKE events_open INCLUDING DEFAULTS) PARTITION BY RANGE (at);

-- Positions go on where they were. One sequence gives them to all partitions, and each partition has its own primary key.
DO $$
DECLARE
  last bigint := pg_sequence_last_value(pg_get_serial_sequence('events_open', 'position')::regclass);
BEGIN
  ALTER TABLE events_open ALTER COLUMN position DROP IDENTITY;
  ALTER TABLE events ALTER COLUMN position ADD GENERATED ALWAYS AS IDENTITY;
  IF last IS NOT NULL THEN PERFORM setval(pg_get_serial_sequence('events', 'position'), last); END IF;
END
$$;

CREATE INDEX events_by_org   ON events (org_id, position);
CREATE INDEX events_by_mecha ON events (mecha, position) WHERE mecha IS NOT NULL;
CREATE INDEX events_by_key   ON events (key_id, position);
-- Finds the indexes that are there.
ALTER TABLE events ATTACH PARTITION events_open DEFAULT;

-- A statement that names a partition fires the triggers of that partition: each has this one too.
CREATE TRIGGER events_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
  FOR EACH STATEMENT EXECUTE FUNCTION events_are_append_only();

GRANT SELECT ON events TO mecha_keys_control;
GRANT INSERT (at, type, org_id, key_id, kind, mecha, actor, request_id, address, data) ON events TO mecha_keys_control;

-- Until when events were dropped. A file of the audit trail still has them: a replay does not take them for what a restore undid.
CREATE TABLE events_expired (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  before   timestamptz(3) NOT NULL
);

-- ── The control plane's login ──

-- What an event is looked for by its transaction, or for having been told, is looked for among late ones: older partitions
-- are not opened, and nothing depends on events that may have been dropped. A day is less than the least retention.
CREATE FUNCTION late_events() RETURNS timestamptz LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  SELECT least(now(), clock_timestamp()) - interval '1 day'
$$;

-- As in migration 0009, among late events.
CREATE OR REPLACE FUNCTION key_changes_are_told() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off AS $$
DECLARE
  needed text := CASE
    WHEN TG_OP = 'INSERT' THEN CASE NEW.kind WHEN 'mecha' THEN 'key.issued' ELSE 'gateway.created' END
    WHEN NEW.revoked_at IS NOT NULL THEN CASE NEW.kind WHEN 'mecha' THEN 'key.revoked' ELSE 'gateway.revoked' END
    WHEN NEW.rotated_to IS DISTINCT FROM OLD.rotated_to THEN 'key.rotated'
    WHEN NEW.hash IS DISTINCT FROM OLD.hash THEN 'key.secret_replaced'
    ELSE 'key.updated' END;
  late timestamptz := late_events();
BEGIN
  IF needed = 'key.secret_replaced' AND pg_has_role(current_user, 'mecha_keys_runtime', 'USAGE') THEN RETURN NULL; END IF;
  IF NOT EXISTS (SELECT FROM events WHERE key_id = NEW.id AND type = needed AND at > late AND xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'a key changes with an event %', needed USING ERRCODE = 'insufficient_privilege';
  END IF;
  IF TG_OP = 'INSERT' AND NEW.rotated_from IS NOT NULL AND NOT EXISTS (
       SELECT FROM keys WHERE id = NEW.rotated_from AND rotated_to = NEW.id AND mecha = NEW.mecha AND xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'a successor is made when its predecessor is rotated' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NULL;
END
$$;

-- As in migration 0009, and what happens once is told only when it has lately happened: the event that told it before may be gone.
CREATE OR REPLACE FUNCTION events_tell_of_changes() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off AS $$
DECLARE
  changed keys%ROWTYPE;
  agrees boolean;
  late timestamptz := late_events();
  -- When a thing is made is within its transaction: a little later than the look-up for its event begins.
  lately timestamptz := late + interval '1 hour';
BEGIN
  NEW.at := within_transaction(NEW.at);
  IF NEW.type = 'signing_key.created' THEN
    agrees := NEW.key_id IS NULL AND NEW.org_id IS NULL AND NEW.mecha IS NULL AND NEW.kind = 'signing_key'
      AND EXISTS (SELECT FROM signing_keys WHERE kid = NEW.data ->> 'kid' AND created_by = NEW.actor AND created_at > lately AND xmin = pg_current_xact_id()::xid)
      AND NOT EXISTS (SELECT FROM events WHERE key_id IS NULL AND type = NEW.type AND at > late AND data ->> 'kid' = NEW.data ->> 'kid');
  ELSE
    SELECT * INTO changed FROM keys WHERE id = NEW.key_id AND xmin = pg_current_xact_id()::xid;
    agrees := FOUND AND changed.kind = NEW.kind AND changed.org_id IS NOT DISTINCT FROM NEW.org_id AND changed.mecha IS NOT DISTINCT FROM NEW.mecha
      AND CASE NEW.type
            WHEN 'key.issued' THEN changed.kind = 'mecha' AND changed.created_by = NEW.actor AND changed.created_at > lately
            WHEN 'gateway.created' THEN changed.kind = 'gateway' AND changed.created_by = NEW.actor AND changed.created_at > lately
            WHEN 'key.revoked' THEN changed.kind = 'mecha' AND changed.revoked_by = NEW.actor
            WHEN 'gateway.revoked' THEN changed.kind = 'gateway' AND changed.revoked_by = NEW.actor
            WHEN 'key.rotated' THEN EXISTS (SELECT FROM keys WHERE id = changed.rotated_to AND created_at > lately)
            ELSE NEW.type IN ('key.updated', 'key.secret_replaced') AND changed.kind = 'mecha' END
      -- What happens to a key once is told once; what can happen again, once in a transaction.
      AND NOT EXISTS (SELECT FROM events WHERE key_id = NEW.key_id AND type = NEW.type AND at > late
                        AND (NEW.type NOT IN ('key.updated', 'key.secret_replaced') OR xmin = pg_current_xact_id()::xid));
  END IF;
  IF agrees IS NOT TRUE THEN
    RAISE EXCEPTION 'an event tells of a change in its own transaction, and once' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER events_tell_of_changes BEFORE INSERT ON events
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION events_tell_of_changes();

CREATE OR REPLACE FUNCTION idempotency_keys_name_new_keys() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off AS $$
DECLARE
  late timestamptz := late_events();
BEGIN
  IF NOT EXISTS (SELECT FROM events WHERE key_id = NEW.key_id AND type = 'key.issued' AND at > late AND xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'an Idempotency-Key is taken for a key that is made with it' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION signing_keys_are_told() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  late timestamptz := late_events();
BEGIN
  IF NOT EXISTS (SELECT FROM events WHERE key_id IS NULL AND type = 'signing_key.created' AND at > late AND data ->> 'kid' = NEW.kid AND xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'a signing key is made with an event' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION signing_keys_end() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  late timestamptz := late_events();
BEGIN
  IF NOT EXISTS (SELECT FROM signing_keys WHERE signs_from > OLD.signs_from AND signs_from <= clock_timestamp() - interval '4200 seconds')
     AND NOT EXISTS (SELECT FROM events WHERE key_id IS NULL AND type = 'signing_key.created' AND at > late AND data -> 'compromised' ? OLD.kid AND xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'a signing key is kept until nothing that it signed is alive' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION late_events FROM PUBLIC;
GRANT EXECUTE ON FUNCTION late_events TO mecha_keys_control;
