-- What the control plane's login may write is what the service writes with it, and nothing else: a grant where a grant can
-- say it, a trigger where it cannot. The rules are for that login alone. The owner of the tables is trusted, since it could
-- drop every one of them; functions that run with its rights, like revoke_by_holder, keep to the rules by themselves.

-- Whether the one who writes has the control plane's rights and no more: who may empty the table needs no other way. One plain
-- expression, for it is asked of each row, and no name that a temporary table could take.
CREATE FUNCTION writes_as_control() RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT pg_catalog.pg_has_role(current_user, 'mecha_keys_control', 'USAGE') AND NOT pg_catalog.has_table_privilege(current_user, 'public.keys', 'TRUNCATE')
$$;

-- A time that the service has read from the clock in this transaction, or else the clock's.
CREATE FUNCTION within_transaction(told timestamptz) RETURNS timestamptz LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE WHEN told BETWEEN date_trunc('milliseconds', transaction_timestamp()) AND clock_timestamp() THEN told
              ELSE date_trunc('milliseconds', clock_timestamp()) END
$$;

-- Refuses a write that the service never does; the argument says which.
CREATE FUNCTION refuse_write() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'insufficient_privilege';
END
$$;

-- ── Keys ──

REVOKE INSERT ON mechas, keys FROM mecha_keys_control;
GRANT INSERT (handle, org_id) ON mechas TO mecha_keys_control;
GRANT INSERT (id, kind, org_id, mecha, name, scopes, metadata, hash, tag_root, pepper_root, created_at, created_by, expires_at, rotated_from)
  ON keys TO mecha_keys_control;

-- The right to update is there to lock a Mecha, and no value changes by that.
CREATE TRIGGER mechas_stay BEFORE UPDATE ON mechas
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION refuse_write('a Mecha cannot be changed');

CREATE FUNCTION keys_are_made_now() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  NEW.created_at := within_transaction(NEW.created_at);
  RETURN NEW;
END
$$;
CREATE TRIGGER keys_are_made_now BEFORE INSERT ON keys
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION keys_are_made_now();

-- What has ended does not live on, and what has been rotated ends when its overlap does. An end is counted as the service
-- counts it or earlier: by the transaction's own time, so that nothing honest is refused in the millisecond of an end. Where the
-- clock went back in the transaction, the service's time is from after that: its transaction is run again, as after a conflict.
CREATE FUNCTION refusal_of_end(ended_at timestamptz) RETURNS text LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE WHEN ended_at >= least(now(), clock_timestamp()) - interval '15 seconds' THEN 'serialization_failure' ELSE 'insufficient_privilege' END
$$;
CREATE FUNCTION keys_keep_their_end() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off AS $$
BEGIN
  IF (NEW.name, NEW.metadata, NEW.hash, NEW.tag_root, NEW.pepper_root, NEW.enabled, NEW.expires_at, NEW.revoked_at, NEW.rotated_to)
     IS NOT DISTINCT FROM
     (OLD.name, OLD.metadata, OLD.hash, OLD.tag_root, OLD.pepper_root, OLD.enabled, OLD.expires_at, OLD.revoked_at, OLD.rotated_to) THEN
    -- Nothing changes, so there is nothing that an event could tell of.
    RETURN NULL;
  END IF;
  IF NEW.revoked_at IS NOT NULL THEN
    NEW.revoked_at := within_transaction(NEW.revoked_at);
  ELSIF OLD.expires_at <= now() AND (NEW.name, NEW.metadata, NEW.enabled, NEW.expires_at, NEW.rotated_to)
        IS DISTINCT FROM (OLD.name, OLD.metadata, OLD.enabled, OLD.expires_at, OLD.rotated_to) THEN
    RAISE EXCEPTION 'an expired key can be revoked and not changed' USING ERRCODE = refusal_of_end(OLD.expires_at);
  END IF;
  IF NEW.expires_at IS DISTINCT FROM OLD.expires_at AND NEW.expires_at < date_trunc('milliseconds', now()) THEN
    RAISE EXCEPTION 'a key cannot have ended before' USING ERRCODE = refusal_of_end(NEW.expires_at);
  END IF;
  IF NEW.rotated_to IS NOT NULL AND (NEW.expires_at IS NULL OR NEW.expires_at > OLD.expires_at) THEN
    RAISE EXCEPTION 'a rotated key ends, and no later than it would have' USING ERRCODE = 'insufficient_privilege';
  END IF;
  IF NEW.rotated_to IS DISTINCT FROM OLD.rotated_to AND (OLD.rotated_to IS NOT NULL OR NOT EXISTS (
       SELECT FROM keys WHERE id = NEW.rotated_to AND rotated_from = OLD.id AND mecha = OLD.mecha AND xmin = pg_current_xact_id()::xid)) THEN
    RAISE EXCEPTION 'a key is rotated once, to a key that is made with it' USING ERRCODE = 'insufficient_privilege';
  END IF;
  -- A login of both planes renews hashes, as the runtime plane's does.
  IF (NEW.hash, NEW.tag_root, NEW.pepper_root) IS DISTINCT FROM (OLD.hash, OLD.tag_root, OLD.pepper_root)
     AND EXISTS (SELECT FROM key_usage WHERE key_id = OLD.id) AND NOT pg_has_role(current_user, 'mecha_keys_runtime', 'USAGE') THEN
    RAISE EXCEPTION 'the secret of a key that was used cannot be replaced' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER keys_keep_their_end BEFORE UPDATE ON keys
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION keys_keep_their_end();

-- Here and below an index is used whatever the statistics say: they may be of when the table was small.
-- At the commit: each change of a key is told by an event of its kind, in the same transaction.
CREATE FUNCTION key_changes_are_told() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off AS $$
DECLARE
  needed text := CASE
    WHEN TG_OP = 'INSERT' THEN CASE NEW.kind WHEN 'mecha' THEN 'key.issued' ELSE 'gateway.created' END
    WHEN NEW.revoked_at IS NOT NULL THEN CASE NEW.kind WHEN 'mecha' THEN 'key.revoked' ELSE 'gateway.revoked' END
    WHEN NEW.rotated_to IS DISTINCT FROM OLD.rotated_to THEN 'key.rotated'
    WHEN NEW.hash IS DISTINCT FROM OLD.hash THEN 'key.secret_replaced'
    ELSE 'key.updated' END;
BEGIN
  IF needed = 'key.secret_replaced' AND pg_has_role(current_user, 'mecha_keys_runtime', 'USAGE') THEN RETURN NULL; END IF;
  IF NOT EXISTS (SELECT FROM events WHERE key_id = NEW.id AND type = needed AND xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'a key changes with an event %', needed USING ERRCODE = 'insufficient_privilege';
  END IF;
  IF TG_OP = 'INSERT' AND NEW.rotated_from IS NOT NULL AND NOT EXISTS (
       SELECT FROM keys WHERE id = NEW.rotated_from AND rotated_to = NEW.id AND mecha = NEW.mecha AND xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'a successor is made when its predecessor is rotated' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER key_changes_are_told AFTER INSERT OR UPDATE ON keys DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION key_changes_are_told();

-- ── Events ──

-- Not the position: the sequence gives it, and OVERRIDING SYSTEM VALUE asks for the right to insert it.
REVOKE INSERT ON events FROM mecha_keys_control;
GRANT INSERT (at, type, org_id, key_id, kind, mecha, actor, request_id, address, data) ON events TO mecha_keys_control;

-- An event tells of a change that its transaction has made, once, and agrees with what was changed. A row that this
-- transaction has written carries its number.
CREATE FUNCTION events_tell_of_changes() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off AS $$
DECLARE
  changed keys%ROWTYPE;
  agrees boolean;
BEGIN
  NEW.at := within_transaction(NEW.at);
  IF NEW.type = 'signing_key.created' THEN
    agrees := NEW.key_id IS NULL AND NEW.org_id IS NULL AND NEW.mecha IS NULL AND NEW.kind = 'signing_key'
      AND EXISTS (SELECT FROM signing_keys WHERE kid = NEW.data ->> 'kid' AND created_by = NEW.actor AND xmin = pg_current_xact_id()::xid)
      AND NOT EXISTS (SELECT FROM events WHERE key_id IS NULL AND type = NEW.type AND data ->> 'kid' = NEW.data ->> 'kid');
  ELSE
    SELECT * INTO changed FROM keys WHERE id = NEW.key_id AND xmin = pg_current_xact_id()::xid;
    agrees := FOUND AND changed.kind = NEW.kind AND changed.org_id IS NOT DISTINCT FROM NEW.org_id AND changed.mecha IS NOT DISTINCT FROM NEW.mecha
      AND CASE NEW.type
            WHEN 'key.issued' THEN changed.kind = 'mecha' AND changed.created_by = NEW.actor
            WHEN 'gateway.created' THEN changed.kind = 'gateway' AND changed.created_by = NEW.actor
            WHEN 'key.revoked' THEN changed.kind = 'mecha' AND changed.revoked_by = NEW.actor
            WHEN 'gateway.revoked' THEN changed.kind = 'gateway' AND changed.revoked_by = NEW.actor
            WHEN 'key.rotated' THEN changed.rotated_to IS NOT NULL
            ELSE NEW.type IN ('key.updated', 'key.secret_replaced') AND changed.kind = 'mecha' END
      -- What happens to a key once is told once; what can happen again, once in a transaction.
      AND NOT EXISTS (SELECT FROM events WHERE key_id = NEW.key_id AND type = NEW.type
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

-- ── Idempotency-Keys ──

-- The right to update is there to pass over what somebody else has locked.
CREATE TRIGGER idempotency_keys_stay BEFORE UPDATE ON idempotency_keys
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION refuse_write('an Idempotency-Key cannot be changed');
CREATE TRIGGER idempotency_keys_live BEFORE DELETE ON idempotency_keys
  FOR EACH ROW WHEN (OLD.expires_at > now() AND writes_as_control()) EXECUTE FUNCTION refuse_write('an Idempotency-Key is kept until it expires');

CREATE FUNCTION idempotency_keys_name_new_keys() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM events WHERE key_id = NEW.key_id AND type = 'key.issued' AND xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'an Idempotency-Key is taken for a key that is made with it' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER idempotency_keys_name_new_keys AFTER INSERT ON idempotency_keys DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION idempotency_keys_name_new_keys();

-- ── Signing keys ──

-- The times are LEAD and KEEP of src/credentials/signing-key.ts. A test holds them together.
CREATE FUNCTION signing_keys_are_announced() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  -- Whoever checks signatures must have a key before it signs, unless there is none that signs in the meantime.
  lead interval := CASE WHEN EXISTS (SELECT FROM signing_keys) THEN '600 seconds' ELSE '0' END;
BEGIN
  NEW.created_at := within_transaction(NEW.created_at);
  IF NEW.signs_from < NEW.created_at + lead THEN
    RAISE EXCEPTION 'a signing key is published before it signs' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER signing_keys_are_announced BEFORE INSERT ON signing_keys
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION signing_keys_are_announced();

CREATE FUNCTION signing_keys_are_told() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM events WHERE key_id IS NULL AND type = 'signing_key.created' AND data ->> 'kid' = NEW.kid AND xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'a signing key is made with an event' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER signing_keys_are_told AFTER INSERT ON signing_keys DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION signing_keys_are_told();

-- A signing key goes when nothing that it signed is alive, or with an event that says that it was compromised.
CREATE FUNCTION signing_keys_end() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM signing_keys WHERE signs_from > OLD.signs_from AND signs_from <= clock_timestamp() - interval '4200 seconds')
     AND NOT EXISTS (SELECT FROM events WHERE key_id IS NULL AND type = 'signing_key.created' AND data -> 'compromised' ? OLD.kid AND xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'a signing key is kept until nothing that it signed is alive' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER signing_keys_end AFTER DELETE ON signing_keys DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION signing_keys_end();

-- An index of the status list is freed when nothing that was exchanged for its key is alive, and given to nobody here.
CREATE FUNCTION token_status_is_freed() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  IF NEW.key_id IS NOT NULL OR NOT EXISTS (SELECT FROM keys WHERE id = OLD.key_id AND LEAST(revoked_at, expires_at) < now() - interval '4200 seconds') THEN
    RAISE EXCEPTION 'an index of the status list is kept until nothing that it tells of is alive' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER token_status_is_freed BEFORE UPDATE ON token_status
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION token_status_is_freed();

-- ── Replicas ──

-- Who has said goodbye. A row of `replicas` that is gone without that may be of a replica that is alive: a restore takes rows, and
-- so does a sweep when the clock is set.
CREATE TABLE farewells (
  id      uuid PRIMARY KEY,
  said_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT ON farewells TO mecha_keys_control;

CREATE OR REPLACE FUNCTION leave_feed(replica uuid, secret bytea) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  DELETE FROM farewells WHERE said_at < clock_timestamp() - interval '1 day';
  WITH gone AS (DELETE FROM replicas WHERE id = replica AND secret_digest = sha256(secret) RETURNING id)
  INSERT INTO farewells (id) SELECT id FROM gone ON CONFLICT DO NOTHING;
$$;

REVOKE ALL ON FUNCTION writes_as_control, within_transaction, refusal_of_end, refuse_write, keys_are_made_now, keys_keep_their_end, key_changes_are_told,
  events_tell_of_changes, idempotency_keys_name_new_keys, signing_keys_are_announced, signing_keys_are_told, signing_keys_end, token_status_is_freed FROM PUBLIC;
GRANT EXECUTE ON FUNCTION writes_as_control() TO mecha_keys_control, mecha_keys_runtime;
GRANT EXECUTE ON FUNCTION within_transaction(timestamptz), refusal_of_end(timestamptz) TO mecha_keys_control;
