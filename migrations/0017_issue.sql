-- A key is issued by one statement, which is a transaction by itself: five round trips of the service become one, and what makes others of
-- the organization wait is held for one commit and nothing else. Each statement within a function sees what was committed when it begins,
-- so what is read after a lock was taken is what the one before has left.

-- Takes an Idempotency-Key's slot for a key that is about to be made, and says of which key the slot is then: of that one, of the
-- one that an earlier request made, or of none (NULL) where others took and left it at this instant. An identical request waits
-- here for this one's transaction.
--
-- Others are waited for only while no slot is locked, and what is swept is passed over where somebody has locked it: two requests
-- cannot each wait for a slot that the other one has.
CREATE FUNCTION take_slot(slot bytea, request bytea, new_key uuid, keep_seconds integer, OUT of_key uuid, OUT of_request bytea)
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off AS $$
BEGIN
  INSERT INTO idempotency_keys (digest, request_digest, key_id, expires_at)
  VALUES (slot, request, new_key, now() + make_interval(secs => keep_seconds)) ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    DELETE FROM idempotency_keys WHERE digest = slot AND expires_at <= now();
    IF NOT FOUND THEN
      SELECT key_id, request_digest INTO of_key, of_request FROM idempotency_keys WHERE digest = slot AND expires_at > now();
      RETURN;
    END IF;
    INSERT INTO idempotency_keys (digest, request_digest, key_id, expires_at)
    VALUES (slot, request, new_key, now() + make_interval(secs => keep_seconds)) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN RETURN; END IF;
  END IF;
  DELETE FROM idempotency_keys WHERE digest = ANY (ARRAY(
    SELECT digest FROM idempotency_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT 10 FOR UPDATE SKIP LOCKED));
  of_key := new_key;
  of_request := request;
END
$$;

-- How many keys of a Mecha are neither revoked nor expired. Exact for who has locked the Mecha.
CREATE FUNCTION count_living_keys(of_mecha text, at timestamptz) RETURNS integer
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp SET enable_seqscan = off AS $$
BEGIN
  RETURN (SELECT count(*) FROM keys WHERE mecha = of_mecha AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > at));
END
$$;

-- Issues a key for a Mecha, which becomes the organization's own if it is nobody's and the organization may take it, and says when the
-- key was made and when it ends. With an Idempotency-Key it says of which key and request the slot is, and makes none where it is another's.
--
-- With the owner's rights, for which the triggers of migration 0009 do not fire: what they look up for each row, this function does. The
-- event is of the key that it has made, by the same actor, at the same time, which is the clock's.
--
-- What it refuses, `src/control/keys/issue.ts` has the words for. MK404: the Mecha is not to be had. MK409: it has as many keys as it may have.
-- MK400: a key that is made now cannot have that end; the detail says in milliseconds when now is.
CREATE FUNCTION issue_key(
  key_id uuid, key_hash text, key_tag_root text, key_pepper_root text,
  of_org text, of_mecha text, key_name text, key_scopes text[], key_metadata jsonb,
  -- Whether the organization may take a handle in a crew that is reserved for nobody.
  is_claimed boolean,
  most_keys integer,
  -- The end, or how long it lives; neither is for ever. NULL for the longest life: there is no longest.
  ends_at timestamptz, life_seconds double precision, longest_seconds double precision,
  -- Who, by which request, from where.
  actor text, request_id text, address text,
  -- NULL: without an Idempotency-Key.
  slot bytea, request bytea, keep_seconds integer,
  OUT made_at timestamptz, OUT key_ends_at timestamptz, OUT slot_key uuid, OUT slot_request bytea
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_seqscan = off AS $$
BEGIN
  IF slot IS NOT NULL THEN
    SELECT of_key, of_request INTO slot_key, slot_request FROM take_slot(slot, request, key_id, keep_seconds);
    IF slot_key IS DISTINCT FROM key_id THEN RETURN; END IF;
  END IF;

  -- Whoever adds or ends keys of a Mecha holds it until the transaction ends. In a crew that is reserved, a new one is for its organization.
  INSERT INTO mechas (handle, org_id) SELECT of_mecha, of_org
  WHERE coalesce((SELECT crews.org_id FROM crews WHERE crew = split_part(of_mecha, '^', 2)), CASE WHEN is_claimed THEN of_org END) = of_org
  ON CONFLICT DO NOTHING;
  IF FOUND THEN
    made_at := date_trunc('milliseconds', clock_timestamp());
  ELSE
    PERFORM FROM mechas WHERE handle = of_mecha AND org_id = of_org FOR UPDATE;
    IF NOT FOUND THEN RAISE EXCEPTION 'the Mecha is not to be had' USING ERRCODE = 'MK404'; END IF;
    -- Read after the lock: a transaction's own time is older.
    made_at := date_trunc('milliseconds', clock_timestamp());
    IF count_living_keys(of_mecha, made_at) >= most_keys THEN RAISE EXCEPTION 'the Mecha has as many keys as it may have' USING ERRCODE = 'MK409'; END IF;
  END IF;

  key_ends_at := coalesce(ends_at, made_at + make_interval(secs => life_seconds));
  IF key_ends_at <= made_at OR key_ends_at > made_at + make_interval(secs => longest_seconds) THEN
    RAISE EXCEPTION 'the key cannot end then' USING ERRCODE = 'MK400', DETAIL = (extract(epoch FROM made_at) * 1000)::bigint;
  END IF;

  INSERT INTO keys (id, kind, org_id, mecha, name, scopes, metadata, hash, tag_root, pepper_root, created_at, created_by, expires_at)
  VALUES (key_id, 'mecha', of_org, of_mecha, key_name, key_scopes, key_metadata, key_hash, key_tag_root, key_pepper_root, made_at, actor, key_ends_at)
  RETURNING created_at INTO made_at;

  -- Last, and one transaction of an organization at a time from here to the commit: positions are in the order of commits.
  PERFORM pg_advisory_xact_lock(hashtextextended(of_org, 20826));
  INSERT INTO events (at, type, org_id, key_id, kind, mecha, actor, request_id, address, data)
  VALUES (made_at, 'key.issued', of_org, key_id, 'mecha', of_mecha, actor, request_id, address,
          jsonb_build_object('expires_at', to_char(key_ends_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')));
END
$$;

-- ── What is asked with every row ──

-- As before, in PL/pgSQL: it keeps its plan for as long as the connection lasts. The text of a function in SQL is parsed each time, or with
-- each statement whose trigger asks for it; together that was a fifth of what an issue cost.
CREATE OR REPLACE FUNCTION writes_as_control() RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN pg_catalog.pg_has_role(current_user, 'mecha_keys_control', 'USAGE') AND NOT pg_catalog.has_table_privilege(current_user, 'public.keys', 'TRUNCATE');
END
$$;

CREATE OR REPLACE FUNCTION within_transaction(told timestamptz) RETURNS timestamptz LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE WHEN told BETWEEN date_trunc('milliseconds', transaction_timestamp()) AND clock_timestamp() THEN told
              ELSE date_trunc('milliseconds', clock_timestamp()) END;
END
$$;

CREATE OR REPLACE FUNCTION late_events() RETURNS timestamptz LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN least(now(), clock_timestamp()) - interval '1 day';
END
$$;

CREATE OR REPLACE FUNCTION is_being_erased(org text) RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  RETURN EXISTS (SELECT FROM erasures WHERE organization = sha256(convert_to(org, 'UTF8')) AND ended_at IS NULL);
END
$$;

REVOKE ALL ON FUNCTION take_slot, count_living_keys, issue_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION take_slot, count_living_keys, issue_key TO mecha_keys_control;
