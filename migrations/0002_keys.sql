-- Who a handle belongs to: the organization that first issued a key for it.
CREATE TABLE mechas (
  handle     text COLLATE "C" PRIMARY KEY
             CHECK (handle ~ '^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?\^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$'),
  org_id     text COLLATE "C" NOT NULL CHECK (org_id <> ''),
  created_at timestamptz(3) NOT NULL DEFAULT date_trunc('milliseconds', now()),
  -- The target of keys' foreign key: a key is of its Mecha's organization, whoever writes the row.
  UNIQUE (handle, org_id)
);

-- The truth: Mecha keys and gateway credentials, which are the same machine with another prefix.
CREATE TABLE keys (
  id            uuid PRIMARY KEY,
  kind          text NOT NULL CHECK (kind IN ('mecha', 'gateway')),
  -- NULL only for a gateway that serves every organization.
  org_id        text COLLATE "C" CHECK (org_id <> ''),
  mecha         text COLLATE "C",
  crew          text COLLATE "C" GENERATED ALWAYS AS (split_part(mecha, '^', 2)) STORED,
  name          text,
  scopes        text[] NOT NULL DEFAULT '{}',
  metadata      jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
  -- Nothing but an argon2id PHC string with a salt of 16 bytes or more and an output of 32 can be stored.
  hash          text NOT NULL
                CHECK (hash ~ '^\$argon2id\$v=19\$m=[0-9]+,t=[0-9]+,p=[0-9]+\$[A-Za-z0-9+/]{22,86}\$[A-Za-z0-9+/]{43}$'),
  -- Which root secret made the tag inside the key (for good), and which one peppers the hash (until it is re-hashed).
  tag_root      text NOT NULL,
  pepper_root   text NOT NULL,
  enabled       boolean NOT NULL DEFAULT true,
  created_at    timestamptz(3) NOT NULL,
  created_by    text NOT NULL,
  expires_at    timestamptz(3),
  revoked_at    timestamptz(3),
  revoked_by    text,
  revoke_reason text,
  rotated_from  uuid REFERENCES keys (id),
  rotated_to    uuid REFERENCES keys (id),
  FOREIGN KEY (mecha, org_id) REFERENCES mechas (handle, org_id),
  CHECK ((kind = 'mecha') = (mecha IS NOT NULL)),
  CHECK (kind = 'gateway' OR org_id IS NOT NULL),
  CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);

-- Listing: newest first within an organization, and within one of its Mechas or crews.
CREATE INDEX keys_by_org   ON keys (org_id, kind, created_at DESC, id DESC);
CREATE INDEX keys_by_mecha ON keys (mecha, created_at DESC, id DESC) WHERE mecha IS NOT NULL;
-- Counting and revoking what lives of a Mecha, however many keys it has had.
CREATE INDEX living_keys_by_mecha ON keys (mecha, created_at DESC, id DESC) WHERE mecha IS NOT NULL AND revoked_at IS NULL;
-- What rotation makes is found from both ends by id; deleting nothing, the foreign keys need no index of their own.

-- A revocation is final, by the database's own rule and not only by the service's.
CREATE FUNCTION keys_keep_revocation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a revoked key cannot be changed' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER keys_keep_revocation BEFORE UPDATE OR DELETE ON keys
  FOR EACH ROW WHEN (OLD.revoked_at IS NOT NULL) EXECUTE FUNCTION keys_keep_revocation();

-- Use is kept apart from keys, so that recording it neither rewrites the row nor wakes anyone who follows keys.
CREATE TABLE key_usage (
  key_id        uuid PRIMARY KEY REFERENCES keys (id),
  first_used_at timestamptz(3) NOT NULL,
  last_used_at  timestamptz(3) NOT NULL
) WITH (fillfactor = 50);

-- Which request made which key, so that a repeated request makes no second one.
-- Neither the caller's Idempotency-Key nor its request is kept, only digests of them.
CREATE TABLE idempotency_keys (
  digest         bytea PRIMARY KEY,
  request_digest bytea NOT NULL,
  -- Checked at commit: the slot is taken before the key is made, so that of two identical requests one waits.
  key_id         uuid NOT NULL REFERENCES keys (id) DEFERRABLE INITIALLY DEFERRED,
  expires_at     timestamptz(3) NOT NULL
);
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at);

GRANT SELECT, INSERT ON mechas TO mecha_keys_control;
-- SELECT … FOR UPDATE on a Mecha is how issuing is serialised; it asks for UPDATE on at least one column.
GRANT UPDATE (created_at) ON mechas TO mecha_keys_control;
GRANT SELECT, INSERT ON keys TO mecha_keys_control;
GRANT UPDATE (name, metadata, hash, tag_root, pepper_root, enabled, expires_at,
              revoked_at, revoked_by, revoke_reason, rotated_to) ON keys TO mecha_keys_control;
GRANT SELECT ON key_usage TO mecha_keys_control;
GRANT SELECT, INSERT, DELETE ON idempotency_keys TO mecha_keys_control;
-- For FOR UPDATE SKIP LOCKED, when what has expired is swept.
GRANT UPDATE (expires_at) ON idempotency_keys TO mecha_keys_control;

GRANT SELECT ON keys TO mecha_keys_runtime;
-- A verify may re-hash what it has just verified. Whoever holds this role can break a key so, never make one.
GRANT UPDATE (hash, pepper_root) ON keys TO mecha_keys_runtime;
GRANT SELECT, INSERT ON key_usage TO mecha_keys_runtime;
GRANT UPDATE (last_used_at) ON key_usage TO mecha_keys_runtime;
