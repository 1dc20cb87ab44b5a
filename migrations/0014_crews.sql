-- Which organization a crew is reserved for. The owner of the tables says so; the control plane's login reads it.
CREATE TABLE crews (
  crew        text COLLATE "C" PRIMARY KEY CHECK (crew ~ '^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$'),
  org_id      text COLLATE "C" NOT NULL CHECK (org_id <> ''),
  reserved_at timestamptz(3) NOT NULL DEFAULT date_trunc('milliseconds', now())
);
GRANT SELECT ON crews TO mecha_keys_control;

-- In a crew of another organization nobody takes a handle that is free. The row is left out, and no error raised: the service answers
-- as it does for a handle that somebody else has, the previous release too. A handle that has an owner stays with it.
CREATE FUNCTION mechas_keep_to_crews() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  IF EXISTS (SELECT FROM crews WHERE crew = split_part(NEW.handle, '^', 2) AND org_id <> NEW.org_id) THEN RETURN NULL; END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER mechas_keep_to_crews BEFORE INSERT ON mechas
  FOR EACH ROW WHEN (writes_as_control()) EXECUTE FUNCTION mechas_keep_to_crews();
REVOKE ALL ON FUNCTION mechas_keep_to_crews FROM PUBLIC;
