-- The feed: which key changed in which transaction, and nothing else. Written by a trigger, so that any writer counts,
-- psql included. Replicas follow it to drop what they hold; the audit trail is `events`, which they cannot read.
CREATE TABLE changes (
  position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  -- NULL: every key (a TRUNCATE).
  key_id   uuid,
  xid      xid8 NOT NULL DEFAULT pg_current_xact_id()
);
-- A follower asks for what was written since the oldest transaction that was open when it last asked.
CREATE INDEX changes_by_xid ON changes (xid);
-- The control plane asks which replicas have applied the changes of a key.
CREATE INDEX changes_by_key ON changes (key_id);

-- With the owner's rights, for the runtime role renews hashes and may write nothing here by itself.
CREATE FUNCTION keys_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO changes (key_id) VALUES (CASE WHEN TG_OP = 'TRUNCATE' THEN NULL ELSE OLD.id END);
  -- No payload: what changed is read from the table, so that a notification can be lost or come twice.
  PERFORM pg_notify('mecha_keys_changes', '');
  RETURN NULL;
END
$$;
-- Not on INSERT: nobody can hold a key that has just been made, and issuing stays as cheap as it is.
CREATE TRIGGER keys_changed AFTER UPDATE OR DELETE ON keys FOR EACH ROW EXECUTE FUNCTION keys_changed();
CREATE TRIGGER keys_truncated AFTER TRUNCATE ON keys FOR EACH STATEMENT EXECUTE FUNCTION keys_changed();

GRANT SELECT, DELETE ON changes TO mecha_keys_runtime;
GRANT SELECT ON changes TO mecha_keys_control;

-- Who follows the feed, and how far: a snapshot says of every transaction whether it had been applied.
CREATE TABLE replicas (
  id       uuid PRIMARY KEY,
  snapshot pg_snapshot NOT NULL,
  seen_at  timestamptz NOT NULL
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE, DELETE ON replicas TO mecha_keys_runtime;
GRANT SELECT ON replicas TO mecha_keys_control;
