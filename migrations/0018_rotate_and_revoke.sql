-- Rotating and revoking by one statement each, as issuing since migration 0017: with the owner's rights, and keeping to the rules of
-- migration 0009 by themselves.

-- Makes a key's successor, and ends the key with its overlap or, if that is sooner, when it would have ended. Whether it may be rotated, and
-- what its successor inherits, the service decides by what it has read of the key (`rotateKey` in `src/control/keys/issue.ts`): here it is still
-- that version, and has not expired since. MK412: it is not, and has to be read again. The rest is as in `issue_key`.
CREATE FUNCTION rotate_key(
  old_id uuid, old_version xid, old_public_id text, overlap_seconds double precision,
  key_id uuid, key_public_id text, key_hash text, key_tag_root text, key_pepper_root text,
  of_org text, of_mecha text, key_name text, key_scopes text[], key_metadata jsonb,
  most_keys integer, ends_at timestamptz, life_seconds double precision, longest_seconds double precision,
  actor text, request_id text, address text,
  slot bytea, request bytea, keep_seconds integer,
  OUT made_at timestamptz, OUT key_ends_at timestamptz, OUT slot_key uuid, OUT slot_request bytea
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_seqscan = off AS $$
DECLARE
  old_ends_at timestamptz;
BEGIN
  IF slot IS NOT NULL THEN
    SELECT of_key, of_request INTO slot_key, slot_request FROM take_slot(slot, request, key_id, keep_seconds);
    IF slot_key IS DISTINCT FROM key_id THEN RETURN; END IF;
  END IF;

  PERFORM FROM mechas WHERE handle = of_mecha AND org_id = of_org FOR UPDATE;
  SELECT expires_at INTO old_ends_at FROM keys
  WHERE id = old_id AND xmin = old_version AND mecha = of_mecha AND org_id = of_org AND revoked_at IS NULL AND rotated_to IS NULL FOR UPDATE;
  IF NOT FOUND THEN RAISE EXCEPTION 'the key is not as it was' USING ERRCODE = 'MK412'; END IF;
  made_at := date_trunc('milliseconds', clock_timestamp());
  IF old_ends_at <= made_at THEN RAISE EXCEPTION 'the key has expired since' USING ERRCODE = 'MK412'; END IF;
  IF count_living_keys(of_mecha, made_at) >= most_keys THEN RAISE EXCEPTION 'the Mecha has as many keys as it may have' USING ERRCODE = 'MK409'; END IF;

  key_ends_at := coalesce(ends_at, made_at + make_interval(secs => life_seconds));
  IF key_ends_at <= made_at OR key_ends_at > made_at + make_interval(secs => longest_seconds) THEN
    RAISE EXCEPTION 'the key cannot end then' USING ERRCODE = 'MK400', DETAIL = (extract(epoch FROM made_at) * 1000)::bigint;
  END IF;

  INSERT INTO keys (id, kind, org_id, mecha, name, scopes, metadata, hash, tag_root, pepper_root, created_at, created_by, expires_at, rotated_from)
  VALUES (key_id, 'mecha', of_org, of_mecha, key_name, key_scopes, key_metadata, key_hash, key_tag_root, key_pepper_root, made_at, actor, key_ends_at, old_id);
  old_ends_at := least(old_ends_at, made_at + make_interval(secs => greatest(overlap_seconds, 0)));
  -- An end that is acknowledged now has to hold even if the clock goes back: a time alone would not.
  UPDATE keys SET expires_at = old_ends_at, rotated_to = key_id, enabled = enabled AND old_ends_at > made_at WHERE id = old_id;

  -- Last, and one transaction of an organization at a time from here to the commit: positions are in the order of commits.
  PERFORM pg_advisory_xact_lock(hashtextextended(of_org, 20826));
  INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address, data) VALUES
    (made_at, 'key.rotated', of_org, old_id, 'mecha', of_mecha, actor, request_id, address,
     jsonb_build_object('rotated_to', key_public_id, 'ends_at', to_char(old_ends_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))),
    (made_at, 'key.issued', of_org, key_id, 'mecha', of_mecha, actor, request_id, address,
     jsonb_build_object('rotated_from', old_public_id, 'expires_at', to_char(key_ends_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')));
END
$$;

-- Revokes a key or a gateway credential of an organization (NULL: of none), and within it of some crews or all (NULL). One that is revoked
-- stays as it is. Says whether there is one.
CREATE FUNCTION revoke_key(revoked_id uuid, of_kind text, of_org text, of_crews text[], actor text, reason text, request_id text, address text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_seqscan = off AS $$
DECLARE
  of_mecha text;
  ended_at timestamptz;
BEGIN
  SELECT mecha, revoked_at INTO of_mecha, ended_at FROM keys
  WHERE id = revoked_id AND kind = of_kind AND org_id IS NOT DISTINCT FROM of_org AND (of_crews IS NULL OR crew = ANY (of_crews)) FOR UPDATE;
  IF NOT FOUND THEN RETURN false; END IF;
  IF ended_at IS NOT NULL THEN RETURN true; END IF;
  -- Taken after the lock: a transaction's own time is older.
  ended_at := date_trunc('milliseconds', clock_timestamp());
  UPDATE keys SET revoked_at = ended_at, revoked_by = actor, revoke_reason = reason WHERE id = revoked_id;

  PERFORM pg_advisory_xact_lock(hashtextextended(coalesce(of_org, ''), 20826));
  INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address, data)
  VALUES (ended_at, CASE of_kind WHEN 'mecha' THEN 'key.revoked' ELSE 'gateway.revoked' END, of_org, revoked_id, of_kind, of_mecha, actor, request_id, address,
          jsonb_build_object('reason', reason));
  RETURN true;
END
$$;

REVOKE ALL ON FUNCTION rotate_key, revoke_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rotate_key, revoke_key TO mecha_keys_control;
