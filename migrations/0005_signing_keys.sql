-- Keys that sign exchanged JWTs, introspections and status lists. The private part is sealed under a key that follows
-- from a root secret, which the database never sees; the public part follows from it and is not stored.
CREATE TABLE signing_keys (
  kid        text COLLATE "C" PRIMARY KEY CHECK (kid ~ '^[A-Za-z0-9_-]{43}$'),
  alg        text NOT NULL CHECK (alg IN ('EdDSA', 'ES256')),
  sealed     bytea NOT NULL,
  -- The root secret that it is sealed under: the control plane moves it to the newest.
  root       text NOT NULL,
  created_at timestamptz(3) NOT NULL,
  created_by text NOT NULL,
  -- Published at once; signs from here on, until another one does.
  signs_from timestamptz(3) NOT NULL
);
GRANT SELECT, INSERT, DELETE ON signing_keys TO mecha_keys_control;
GRANT UPDATE (sealed, root) ON signing_keys TO mecha_keys_control;
GRANT SELECT ON signing_keys TO mecha_keys_runtime;

-- What happens to a signing key happens to no key and no gateway. The release before shows no events but those of an
-- organization, which these are not.
ALTER TABLE events ALTER COLUMN key_id DROP NOT NULL;

-- Where a key that was ever exchanged stands in the status list. Places are used again when nothing that was exchanged
-- for the key before can be alive: the list is as long as there are such keys at a time, and not as there ever were.
CREATE TABLE token_status (
  -- Two bits each: the list has a mebibyte at most.
  idx    integer PRIMARY KEY CHECK (idx >= 0 AND idx < 4194304),
  -- NULL is free. Not a foreign key: a key that was deleted by hand keeps its place, as one that is not good.
  key_id uuid UNIQUE
);
CREATE INDEX free_token_status ON token_status (idx) WHERE key_id IS NULL;

-- The place of a key, which gets one if it has none. With the owner's rights: the runtime role writes nothing here by itself.
CREATE FUNCTION token_status_place(of_key uuid) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  place integer;
BEGIN
  SELECT idx INTO place FROM token_status WHERE key_id = of_key;
  IF place IS NOT NULL THEN RETURN place; END IF;
  IF NOT EXISTS (SELECT FROM keys WHERE id = of_key AND kind = 'mecha') THEN
    RAISE EXCEPTION 'there is no such key' USING ERRCODE = 'foreign_key_violation';
  END IF;
  -- One at a time from here to the commit; what the one before took is seen by the statements after this one.
  PERFORM pg_advisory_xact_lock(20827);
  SELECT idx INTO place FROM token_status WHERE key_id = of_key;
  IF place IS NOT NULL THEN RETURN place; END IF;
  UPDATE token_status SET key_id = of_key
    WHERE idx = (SELECT idx FROM token_status WHERE key_id IS NULL ORDER BY idx LIMIT 1) RETURNING idx INTO place;
  IF place IS NULL THEN
    INSERT INTO token_status (idx, key_id) SELECT coalesce(max(idx) + 1, 0), of_key FROM token_status RETURNING idx INTO place;
  END IF;
  RETURN place;
END
$$;
GRANT EXECUTE ON FUNCTION token_status_place(uuid) TO mecha_keys_runtime;
GRANT SELECT ON token_status TO mecha_keys_runtime, mecha_keys_control;
GRANT UPDATE (key_id) ON token_status TO mecha_keys_control;
