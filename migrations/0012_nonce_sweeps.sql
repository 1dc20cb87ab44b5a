-- A nonce must not come back because the database's clock went forward, had it swept, and came back. This table's one row
-- remembers the latest end of all nonces that were ever swept; a nonce with no later end is refused.
CREATE TABLE nonce_sweeps (
  is_only     boolean PRIMARY KEY DEFAULT true CHECK (is_only),
  swept_until timestamptz(3) NOT NULL
);
INSERT INTO nonce_sweeps (swept_until) VALUES ('-infinity');

-- Takes a nonce: 'taken', 'taken_before', 'untimely' or 'no_key'. With the owner's rights, so that the runtime login cannot
-- lower what was remembered of sweeps. The previous release still sweeps by itself, and what it sweeps is not remembered.
--
-- `ends_at` is what the gateway asks for: when it refuses the request by its timestamp. Another gateway may tolerate more,
-- so a nonce is kept for `least_ttl` seconds at least: as long as any gateway can accept a request that one accepts now.
CREATE FUNCTION take_nonce(of_key uuid, of_org text, nonce_digest bytea, ends_at timestamptz, least_ttl integer, most_ttl integer) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  kept_until timestamptz(3) := greatest(ends_at, now() + make_interval(secs => least_ttl));
BEGIN
  IF NOT EXISTS (SELECT FROM keys WHERE id = of_key AND kind = 'mecha' AND (of_org IS NULL OR org_id = of_org)) THEN RETURN 'no_key'; END IF;
  IF ends_at <= now() OR ends_at > now() + make_interval(secs => most_ttl) THEN RETURN 'untimely'; END IF;
  INSERT INTO nonces (key_id, digest, expires_at) VALUES (of_key, nonce_digest, kept_until) ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN RETURN 'taken_before'; END IF;
  -- After the INSERT and with a snapshot of its own: a nonce can be inserted again only once its removal is committed, and
  -- what was remembered is committed with that.
  IF ends_at <= (SELECT swept_until FROM nonce_sweeps) THEN
    DELETE FROM nonces WHERE key_id = of_key AND digest = nonce_digest;
    RETURN 'untimely';
  END IF;
  -- A minute late, for a statement that is under way may have begun before the nonce expired. One call at a time sweeps,
  -- and nobody waits for it: more than all calls meanwhile can add.
  IF EXISTS (SELECT FROM nonces WHERE expires_at <= now() - interval '1 minute') THEN
    PERFORM FROM nonce_sweeps FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
      WITH swept AS (
        DELETE FROM nonces WHERE (key_id, digest) IN (
          SELECT key_id, digest FROM nonces WHERE expires_at <= now() - interval '1 minute' ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED)
        RETURNING expires_at
      )
      UPDATE nonce_sweeps SET swept_until = greatest(swept_until, (SELECT max(expires_at) FROM swept));
    END IF;
  END IF;
  RETURN 'taken';
END
$$;
REVOKE ALL ON FUNCTION take_nonce FROM PUBLIC;
GRANT EXECUTE ON FUNCTION take_nonce TO mecha_keys_runtime;
