\echo Use "ALTER EXTENSION sync_outbox UPDATE" to load this file. \quit

-- From 0.1.0, which is frozen, to 0.2.0: what sync_outbox--0.2.0.sql makes otherwise, and what the old objects need beside.

-- A sender knows within 100 ms what a target's row says, also where it was written by hand.
CREATE FUNCTION @extschema@.sync_outbox_target_changed() RETURNS trigger
    AS 'MODULE_PATHNAME', 'sync_outbox_target_changed' LANGUAGE c;
COMMENT ON FUNCTION @extschema@.sync_outbox_target_changed() IS
    'trigger function that tells every sender once a change of sync_outbox_target has committed';
REVOKE ALL ON FUNCTION @extschema@.sync_outbox_target_changed() FROM PUBLIC;
CREATE TRIGGER sync_outbox_target_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON @extschema@.sync_outbox_target
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.sync_outbox_target_changed();
ALTER TABLE @extschema@.sync_outbox_target ENABLE ALWAYS TRIGGER sync_outbox_target_changed;
