\echo Use "ALTER EXTENSION sync_outbox UPDATE" to load this file. \quit

-- From 0.1.0, which is frozen, to 0.2.0: what sync_outbox--0.2.0.sql makes otherwise, and what the old objects need beside.

------------------------------------------------------------------------------------------------------------------------
-- Targets come and go through functions only: a change knows its target by id, and would be left behind by a DELETE.
------------------------------------------------------------------------------------------------------------------------
CREATE FUNCTION @extschema@.sync_outbox_target_set(name text, config json)
    RETURNS void AS 'MODULE_PATHNAME', 'sync_outbox_target_set_wrapper' LANGUAGE c;
COMMENT ON FUNCTION @extschema@.sync_outbox_target_set(text, json) IS
    'makes a target or changes what the members name of it: base_url, upload_path and, for superusers, the files; null is the server-wide setting';

CREATE FUNCTION @extschema@.sync_outbox_target_drop(name text)
    RETURNS void AS 'MODULE_PATHNAME', 'sync_outbox_target_drop_wrapper' LANGUAGE c;
COMMENT ON FUNCTION @extschema@.sync_outbox_target_drop(text) IS
    'drops a target that no table is attached to and no change waits for';

REVOKE ALL ON FUNCTION
    @extschema@.sync_outbox_target_set(text, json),
    @extschema@.sync_outbox_target_drop(text)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    @extschema@.sync_outbox_target_set(text, json),
    @extschema@.sync_outbox_target_drop(text)
    TO sync_outbox_admin;
REVOKE INSERT (name, base_url, upload_path), UPDATE (name), DELETE ON @extschema@.sync_outbox_target FROM sync_outbox_admin;
COMMENT ON TABLE @extschema@.sync_outbox_target IS
    'remote endpoints; NULL in a column means: the setting sync_outbox.<column> counts. The one used where nothing is said is named default. Call sync_outbox_target_set() and sync_outbox_target_drop(): changes know their target by id, so that a deleted row leaves them behind';
