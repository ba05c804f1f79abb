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

------------------------------------------------------------------------------------------------------------------------
-- The overview says since when somebody has had the turn, in one more column behind those that it had. CREATE OR REPLACE does
-- not add one, and DROP would take what others have made with the function: views, and rights. A column at the end changes
-- nothing for these: a query that was parsed before reads the columns that it knows, and ignores those that follow.
------------------------------------------------------------------------------------------------------------------------
UPDATE pg_catalog.pg_proc SET
    proallargtypes = pg_catalog.array_append(proallargtypes, 'pg_catalog.timestamptz'::pg_catalog.regtype::pg_catalog.oid),
    proargmodes = pg_catalog.array_append(proargmodes, 'o'::pg_catalog."char"),
    proargnames = pg_catalog.array_append(proargnames, 'sender_since'::pg_catalog.text)
 WHERE oid OPERATOR(pg_catalog.=) '@extschema@.sync_outbox_overview()'::pg_catalog.regprocedure;

------------------------------------------------------------------------------------------------------------------------
-- The hub's half. No function changes its arguments, so that every right that was granted on one stays.
------------------------------------------------------------------------------------------------------------------------
ALTER TABLE @extschema@.sync_outbox_accepted ADD ignore_unknown_columns boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN @extschema@.sync_outbox_accepted.ignore_unknown_columns IS
    'columns of the sender that the table lacks are left out; else they are an error of the change';

CREATE FUNCTION @extschema@.sync_outbox_accept(relation regclass, ignore_unknown_columns boolean)
    RETURNS void AS 'MODULE_PATHNAME', 'sync_outbox_accept_with_wrapper' LANGUAGE c;
COMMENT ON FUNCTION @extschema@.sync_outbox_accept(regclass, boolean) IS
    'the same, and says whether columns of the sender that the table lacks are left out or are an error of the change';

CREATE FUNCTION @extschema@.sync_outbox_apply_text(payload text)
    RETURNS json AS 'MODULE_PATHNAME', 'sync_outbox_apply_text_wrapper' LANGUAGE c;
COMMENT ON FUNCTION @extschema@.sync_outbox_apply_text(text) IS
    'as sync_outbox_apply(), for receivers: a value that is nested too deep for the type json is an error of its change alone';

REVOKE ALL ON FUNCTION
    @extschema@.sync_outbox_accept(regclass, boolean), @extschema@.sync_outbox_apply_text(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    @extschema@.sync_outbox_accept(regclass, boolean), @extschema@.sync_outbox_apply_text(text) TO sync_outbox_admin;
