\echo Use "ALTER EXTENSION sync_outbox UPDATE" to load this file. \quit

-- From 0.1.0, which is frozen, to 0.2.0: what sync_outbox--0.2.0.sql makes otherwise, and what the old objects need beside.

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
