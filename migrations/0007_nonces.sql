-- Nonces of signed requests, so that none is taken twice, on whatever gateway. Kept, and not UNLOGGED: after a crash such
-- a table is empty, and what was signed shortly before could be sent again.
CREATE TABLE nonces (
  -- No foreign key: it would lock the key's row with each request that the key signs.
  key_id     uuid NOT NULL,
  -- SHA-256: as long whatever the nonce is.
  digest     bytea NOT NULL CHECK (octet_length(digest) = 32),
  expires_at timestamptz(3) NOT NULL,
  PRIMARY KEY (key_id, digest)
);
CREATE INDEX nonces_by_expiry ON nonces (expires_at);

GRANT SELECT, INSERT, DELETE ON nonces TO mecha_keys_runtime;
-- For FOR UPDATE SKIP LOCKED, when what has expired is swept. Who may delete a nonce may as well change its end.
GRANT UPDATE (expires_at) ON nonces TO mecha_keys_runtime;
