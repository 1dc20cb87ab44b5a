-- The two roles that the planes work under. Login roles are granted one of them; neither can log in by itself.
-- Roles belong to the cluster, not to the database: another database of the same cluster may have made them already,
-- or may be making them at this very moment; where they are there, the owner needs no right to make roles.
DO $$
DECLARE
  plane text;
BEGIN
  FOREACH plane IN ARRAY ARRAY['mecha_keys_control', 'mecha_keys_runtime'] LOOP
    CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = plane);
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN', plane);
    EXCEPTION
      WHEN duplicate_object OR unique_violation THEN NULL;
    END;
  END LOOP;
END
$$;

-- Nobody but the owner makes objects here; functions are executable only by whom they are granted to.
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO mecha_keys_control, mecha_keys_runtime;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- Readiness: a process that is newer than its database says so.
GRANT SELECT ON kysely_migration TO mecha_keys_control, mecha_keys_runtime;
