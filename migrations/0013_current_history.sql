-- Each statement of the runtime plane names its history, and restore_hold() in it cost more than the look-up itself: it reads
-- the cluster's control file. A server does not become another one while it runs, so the history that was once found to be of
-- the accepted database is written down, and is not looked into again.
ALTER TABLE database_identity ADD COLUMN verified_in text;

-- When the server was started, and the files of the two tables that the feed stands on. A file's name holds the database's
-- oid, and changes when its table is made anew, as a restore does.
CREATE FUNCTION unheld_history() RETURNS text LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
  SELECT concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()), pg_relation_filepath('keys'), pg_relation_filepath('changes'))
$$;

-- Which history a statement is answered from, and in it why nothing may be answered, if so. PL/pgSQL, which plans what it asks
-- once a connection; and every piece in line, for each function that is called costs a statement more than what it does.
CREATE FUNCTION current_history() RETURNS text LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
DECLARE
  history  text := concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()), pg_relation_filepath('keys'), pg_relation_filepath('changes'));
  accepted database_identity%ROWTYPE;
BEGIN
  SELECT * INTO accepted FROM database_identity;
  IF accepted.verified_in = history AND accepted.lost_at IS NULL AND NOT pg_is_in_recovery() THEN
    IF accepted.timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8) THEN RETURN history; END IF;
  END IF;
  RETURN concat_ws(' ', history, 'held:' || restore_hold());
END
$$;

-- Writes down that this history is of the accepted database, where that is so and can be written.
CREATE FUNCTION verify_history() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF current_setting('transaction_read_only') = 'on' THEN RETURN; END IF;
  UPDATE database_identity SET verified_in = unheld_history() WHERE verified_in IS DISTINCT FROM unheld_history() AND restore_hold() IS NULL;
END
$$;

CREATE OR REPLACE FUNCTION accept_database(whose text) RETURNS void LANGUAGE sql SET search_path = public, pg_temp AS $$
  INSERT INTO database_identity (identity, timeline, accepted_at, accepted_by, verified_in)
  VALUES (current_identity(), current_timeline(), clock_timestamp(), whose, unheld_history())
  ON CONFLICT (only_row) DO UPDATE
    SET identity = excluded.identity, timeline = excluded.timeline, lost_at = NULL, accepted_at = excluded.accepted_at, accepted_by = excluded.accepted_by,
        verified_in = excluded.verified_in
$$;

REVOKE ALL ON FUNCTION unheld_history, current_history, verify_history FROM PUBLIC;
GRANT EXECUTE ON FUNCTION current_history TO mecha_keys_control, mecha_keys_runtime;
GRANT EXECUTE ON FUNCTION verify_history TO mecha_keys_runtime;
