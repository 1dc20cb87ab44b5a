-- An organization can be erased, by the owner of the tables. Rows that can otherwise not be removed, revoked keys and events, can be
-- while their organization's erasure is under way, and nothing else can. Meanwhile nothing is made for it.

-- In the order in which issuing takes them, and before the indexes are built, which takes about a second for each million keys: whoever
-- issues meanwhile waits, and has nothing yet that this migration waits for.
LOCK TABLE idempotency_keys, mechas, keys IN SHARE ROW EXCLUSIVE MODE;

-- Who deletes a key is asked who names it.
CREATE INDEX keys_by_rotated_from    ON keys (rotated_from) WHERE rotated_from IS NOT NULL;
CREATE INDEX keys_by_rotated_to      ON keys (rotated_to) WHERE rotated_to IS NOT NULL;
CREATE INDEX idempotency_keys_by_key ON idempotency_keys (key_id);

-- What is left of an organization that was erased, and how far an erasure is that is under way.
CREATE TABLE erasures (
  -- SHA-256 of the organization's id.
  organization bytea PRIMARY KEY CHECK (octet_length(organization) = 32),
  -- What the operator confirmed, for whoever goes on after a crash.
  confirmation text NOT NULL,
  -- What there was of it.
  counts       jsonb NOT NULL,
  begun_at     timestamptz(3) NOT NULL,
  -- NULL: it is under way.
  ended_at     timestamptz(3),
  -- The last position that an event of it may have had. Those after it are of an organization that came with the same id.
  through      bigint CHECK ((through IS NULL) = (ended_at IS NULL))
);
-- Whoever writes out the audit trail tells an event that was erased from one that a restore undid.
GRANT SELECT ON erasures TO mecha_keys_control;

CREATE FUNCTION is_being_erased(org text) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT EXISTS (SELECT FROM erasures WHERE organization = sha256(convert_to(org, 'UTF8')) AND ended_at IS NULL)
$$;

-- Whoever makes something for it is told that the service has too much to do, and may try again.
CREATE FUNCTION nothing_is_made_while_erased() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  IF is_being_erased(NEW.org_id) THEN
    RAISE EXCEPTION 'the organization is being erased' USING ERRCODE = 'lock_not_available';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER nothing_is_made_while_erased BEFORE INSERT ON mechas FOR EACH ROW EXECUTE FUNCTION nothing_is_made_while_erased();
CREATE TRIGGER nothing_is_made_while_erased BEFORE INSERT ON keys FOR EACH ROW EXECUTE FUNCTION nothing_is_made_while_erased();

-- A revoked key stays as it is, until its organization is erased: then it goes, after what names it has let go of it.
CREATE OR REPLACE FUNCTION keys_keep_revocation() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  IF is_being_erased(OLD.org_id) THEN
    IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
    -- `crew` follows from `mecha`, after this trigger.
    IF to_jsonb(NEW) - '{rotated_from,rotated_to,crew}'::text[] = to_jsonb(OLD) - '{rotated_from,rotated_to,crew}'::text[] THEN RETURN NEW; END IF;
  END IF;
  RAISE EXCEPTION 'a revoked key cannot be changed' USING ERRCODE = 'restrict_violation';
END
$$;

-- What is written stays as it was written, for the owner of the table too, unless it says in its transaction that it erases, and then
-- each event but those of an organization whose erasure is under way.
CREATE OR REPLACE FUNCTION events_are_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND current_setting('mecha_keys.erase', true) = 'on' THEN RETURN NULL; END IF;
  RAISE EXCEPTION 'events can be neither changed nor deleted' USING ERRCODE = 'restrict_violation';
END
$$;
-- Events of crews are of no organization, and say whose the crew was.
CREATE FUNCTION events_are_erased() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  IF current_setting('mecha_keys.erase', true) = 'on' AND is_being_erased(CASE OLD.kind WHEN 'crew' THEN OLD.data ->> 'org_id' ELSE OLD.org_id END) THEN RETURN OLD; END IF;
  RAISE EXCEPTION 'events can be neither changed nor deleted' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER events_are_erased BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION events_are_erased();

-- The index of a key that was erased goes on telling that its JWTs have ended, until none can be alive.
ALTER TABLE token_status ADD COLUMN key_erased_at timestamptz(3);
CREATE FUNCTION token_status_begins_anew() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  NEW.key_erased_at := NULL;
  RETURN NEW;
END
$$;
CREATE TRIGGER token_status_begins_anew BEFORE UPDATE ON token_status
  FOR EACH ROW WHEN (NEW.key_id IS DISTINCT FROM OLD.key_id) EXECUTE FUNCTION token_status_begins_anew();

CREATE OR REPLACE FUNCTION token_status_is_freed() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  IF NEW.key_id IS NOT NULL
     OR (OLD.key_erased_at < now() - interval '4200 seconds') IS NOT TRUE
        AND NOT EXISTS (SELECT FROM keys WHERE id = OLD.key_id AND LEAST(revoked_at, expires_at) < now() - interval '4200 seconds') THEN
    RAISE EXCEPTION 'an index of the status list is kept until nothing that it tells of is alive' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN NEW;
END
$$;

REVOKE ALL ON FUNCTION is_being_erased, nothing_is_made_while_erased, events_are_erased, token_status_begins_anew FROM PUBLIC;
GRANT EXECUTE ON FUNCTION is_being_erased TO mecha_keys_control, mecha_keys_runtime;
