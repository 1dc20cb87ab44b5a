-- Whoever holds a key can end it, through the runtime plane, whose role can write neither a revocation nor an event. With
-- the owner's rights this function does both, for one key, and only for who names the hash that the secret was proved
-- against. It says whether the key is over: by this call, by an earlier one, or because there is none. `false` says that
-- the key has another hash by now, against which its secret has to be proved again.
CREATE FUNCTION revoke_by_holder(held_id uuid, proven_hash text, by_request text, from_address text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  held keys%ROWTYPE;
  ended_at timestamptz(3);
BEGIN
  SELECT * INTO held FROM keys WHERE id = held_id FOR UPDATE;
  IF NOT FOUND OR held.revoked_at IS NOT NULL THEN RETURN true; END IF;
  IF held.hash IS DISTINCT FROM proven_hash THEN RETURN false; END IF;
  -- Taken after the lock, as the control plane does: a transaction's own time is older.
  ended_at := date_trunc('milliseconds', clock_timestamp());
  UPDATE keys SET revoked_at = ended_at, revoked_by = 'holder' WHERE id = held_id;
  -- Last, and under the lock that the control plane's events of this organization are written under: positions are in
  -- the order of commits.
  PERFORM pg_advisory_xact_lock(hashtextextended(coalesce(held.org_id, ''), 20826));
  INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address, data)
  VALUES (ended_at, CASE held.kind WHEN 'mecha' THEN 'key.revoked' ELSE 'gateway.revoked' END,
          held.org_id, held_id, held.kind, held.mecha, 'holder', by_request, from_address, '{"reason": null}');
  RETURN true;
END
$$;
REVOKE ALL ON FUNCTION revoke_by_holder FROM PUBLIC;
GRANT EXECUTE ON FUNCTION revoke_by_holder TO mecha_keys_runtime;
