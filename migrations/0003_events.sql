-- The audit trail: who did what, from where, when. Written in the transaction that did it.
CREATE TABLE events (
  position   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at         timestamptz(3) NOT NULL,
  type       text NOT NULL,
  org_id     text COLLATE "C",
  key_id     uuid NOT NULL,
  kind       text NOT NULL,
  mecha      text COLLATE "C",
  actor      text NOT NULL,
  request_id text NOT NULL,
  address    text NOT NULL,
  data       jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX events_by_org   ON events (org_id, position);
CREATE INDEX events_by_mecha ON events (mecha, position) WHERE mecha IS NOT NULL;
CREATE INDEX events_by_key   ON events (key_id, position);

-- What is written stays as it was written, for the owner of the table too.
CREATE FUNCTION events_are_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'events can be neither changed nor deleted' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER events_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
  FOR EACH STATEMENT EXECUTE FUNCTION events_are_append_only();

GRANT SELECT, INSERT ON events TO mecha_keys_control;
