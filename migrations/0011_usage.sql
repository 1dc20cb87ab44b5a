-- Which gateway asked about a key, or reported it, when it was last used. NULL: none did, or the release before wrote the time.
ALTER TABLE key_usage ADD COLUMN last_used_by uuid;
GRANT UPDATE (last_used_by) ON key_usage TO mecha_keys_runtime;

-- When a key was last presented after its end: who still needs it. Apart from key_usage, for a key can be refused that was
-- never used. No foreign key: it would lock the key's row, and a row that is deleted by hand may leave this one behind.
CREATE TABLE key_refusals (
  key_id            uuid PRIMARY KEY,
  last_refused_at   timestamptz(3) NOT NULL,
  last_refused_code text NOT NULL CHECK (last_refused_code IN ('revoked', 'expired', 'disabled'))
) WITH (fillfactor = 50);
GRANT SELECT, INSERT ON key_refusals TO mecha_keys_runtime;
GRANT UPDATE (last_refused_at, last_refused_code) ON key_refusals TO mecha_keys_runtime;
GRANT SELECT ON key_refusals TO mecha_keys_control;
