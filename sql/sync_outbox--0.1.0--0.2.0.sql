\echo Use "ALTER EXTENSION sync_outbox UPDATE" to load this file. \quit

-- From 0.1.0, which is frozen, to 0.2.0: what sync_outbox--0.2.0.sql makes otherwise, and what the old objects need
-- beside.

------------------------------------------------------------------------------------------------------------------------
-- What stops the update comes first, so that whoever reads of it has waited for nothing.
------------------------------------------------------------------------------------------------------------------------

-- The library of 0.1.0 does not have the functions below. It is what a server goes on with until it is restarted.
DO $library$
BEGIN
    -- A sender knows within 100 ms what a target's row says, also where it was written by hand.
    CREATE FUNCTION @extschema@.sync_outbox_target_changed() RETURNS trigger
        AS 'MODULE_PATHNAME', 'sync_outbox_target_changed' LANGUAGE c;
EXCEPTION WHEN undefined_function THEN
    RAISE EXCEPTION 'the loaded library of extension "sync_outbox" is older than version 0.2.0'
        USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = SQLERRM,
              HINT = 'Install the new library and restart the server, then ALTER EXTENSION sync_outbox UPDATE; where shared_preload_libraries does not name it, a new session is enough.';
END
$library$;

-- Capture refuses what is written to a table while a column that its options name is missing: it may have been renamed,
-- and be one that must not be sent. Version 0.1.0 did not heed that of excluded columns, so that this would be news.
DO $missing$
DECLARE
    one record;
    options pg_catalog.json;
    lacks text;
    missing text[] := '{}';
BEGIN
    FOR one IN SELECT DISTINCT t.tgrelid AS oid, t.tgrelid::pg_catalog.regclass::pg_catalog.text AS relation,
                      pg_catalog.convert_from(
                          pg_catalog.substr(t.tgargs, 1, pg_catalog.length(t.tgargs) OPERATOR(pg_catalog.-) 1),
                          pg_catalog.getdatabaseencoding()) AS options
                 FROM pg_catalog.pg_trigger t
                WHERE t.tgfoid OPERATOR(pg_catalog.=) '@extschema@.sync_outbox_capture()'::pg_catalog.regprocedure
                  AND t.tgparentid OPERATOR(pg_catalog.=) 0 AND t.tgnargs OPERATOR(pg_catalog.=) 1
                ORDER BY relation
    LOOP
        BEGIN
            options := one.options::pg_catalog.json;
        EXCEPTION WHEN OTHERS THEN
            CONTINUE; -- no trigger of sync_outbox_attach()
        END;
        CONTINUE WHEN pg_catalog.json_typeof(options) OPERATOR(pg_catalog.<>) 'object';
        SELECT pg_catalog.string_agg(pg_catalog.format('%I (%s)', n.name, n.argument), ', ' ORDER BY n.argument, n.name)
          INTO lacks
          FROM (SELECT l.argument, c.name
                  FROM (VALUES ('columns'), ('exclude'), ('key_columns')) AS l (argument)
                 CROSS JOIN LATERAL pg_catalog.json_array_elements_text(
                       CASE WHEN pg_catalog.json_typeof(options OPERATOR(pg_catalog.->) l.argument)
                                     OPERATOR(pg_catalog.=) 'array'
                            THEN options OPERATOR(pg_catalog.->) l.argument END) AS c (name)
                 UNION ALL
                SELECT 'branch_column', options OPERATOR(pg_catalog.->>) 'branch_column') n
         WHERE n.name IS NOT NULL
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                            WHERE a.attrelid OPERATOR(pg_catalog.=) one.oid AND a.attname OPERATOR(pg_catalog.=) n.name
                              AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped);
        IF lacks IS NOT NULL THEN
            missing := pg_catalog.array_append(missing, pg_catalog.format('%s lacks %s.', one.relation, lacks));
        END IF;
    END LOOP;
    IF missing OPERATOR(pg_catalog.<>) '{}' THEN
        RAISE EXCEPTION 'attached tables lack columns that their options name'
            USING ERRCODE = 'undefined_column', DETAIL = pg_catalog.array_to_string(missing, E'\n'),
                  HINT = 'Give the columns their names back, or attach these tables anew in the transaction of the update: BEGIN; DROP TRIGGER "!sync_outbox_row" ON .., and "!sync_outbox_truncate" if there is one; ALTER EXTENSION sync_outbox UPDATE; SELECT sync_outbox_attach(..); COMMIT;';
    END IF;
END
$missing$;

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
-- The overview says since when somebody has had the turn, in one more column behind those that it had. CREATE OR
-- REPLACE does not add one, and DROP would take what others have made with the function: views, and rights. A column at
-- the end changes nothing for these: a query that was parsed before reads the columns that it knows, and ignores those
-- that follow.
------------------------------------------------------------------------------------------------------------------------
UPDATE pg_catalog.pg_proc SET
    proallargtypes = pg_catalog.array_append(proallargtypes, 'pg_catalog.timestamptz'::pg_catalog.regtype::pg_catalog.oid),
    proargmodes = pg_catalog.array_append(proargmodes, 'o'::pg_catalog."char"),
    proargnames = pg_catalog.array_append(proargnames, 'sender_since'::pg_catalog.text),
    -- Of another name, so that a session that has still loaded the library of 0.1.0 does not give a column too few.
    prosrc = 'sync_outbox_overview_0_2_0_wrapper'
 WHERE oid OPERATOR(pg_catalog.=) '@extschema@.sync_outbox_overview()'::pg_catalog.regprocedure;

------------------------------------------------------------------------------------------------------------------------
-- Library and objects can be of two versions, as they are while this script has not run.
------------------------------------------------------------------------------------------------------------------------
CREATE FUNCTION @extschema@.sync_outbox_version(OUT library text, OUT extension text, OUT matches boolean)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'sync_outbox_version_wrapper' LANGUAGE c;
COMMENT ON FUNCTION @extschema@.sync_outbox_version() IS
    'the version of the library that this session has loaded, that of the extension in this database, and whether they match';

REVOKE ALL ON FUNCTION @extschema@.sync_outbox_version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.sync_outbox_version() TO sync_outbox_admin, sync_outbox_operator, pg_monitor;

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

------------------------------------------------------------------------------------------------------------------------
-- Capture keeps which columns were meant beside their names, so that a new column under an old name is not taken for
-- the old one, and the name that the table was attached under. Tables that 0.1.0 has attached get those of today.
-- Written into the catalog, because replacing the triggers would lock every attached table until this has committed;
-- nobody has to be told, because whatever gives a column or table another name makes every session read the table's
-- triggers anew.
------------------------------------------------------------------------------------------------------------------------
DO $numbers$
DECLARE
    one record;
    columns pg_catalog.json;
    added text;
BEGIN
    -- A partition's trigger has the argument of the attached table's.
    FOR one IN WITH RECURSIVE attached AS (
                    SELECT oid, tgrelid AS root FROM pg_catalog.pg_trigger
                     WHERE tgfoid OPERATOR(pg_catalog.=) '@extschema@.sync_outbox_capture()'::pg_catalog.regprocedure
                       AND tgparentid OPERATOR(pg_catalog.=) 0
                    UNION ALL
                    SELECT t.oid, a.root FROM pg_catalog.pg_trigger t JOIN attached a ON t.tgparentid OPERATOR(pg_catalog.=) a.oid)
               SELECT t.oid, a.root,
                      (SELECT pg_catalog.json_build_array(n.nspname, c.relname)
                         FROM pg_catalog.pg_class c
                         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
                        WHERE c.oid OPERATOR(pg_catalog.=) a.root) AS name,
                      pg_catalog.convert_from(
                          pg_catalog.substr(t.tgargs, 1, pg_catalog.length(t.tgargs) OPERATOR(pg_catalog.-) 1),
                          pg_catalog.getdatabaseencoding()) AS options
                 FROM pg_catalog.pg_trigger t JOIN attached a ON a.oid OPERATOR(pg_catalog.=) t.oid
                WHERE t.tgnargs OPERATOR(pg_catalog.=) 1
    LOOP
        BEGIN
            columns := one.options::pg_catalog.json;
        EXCEPTION WHEN OTHERS THEN
            CONTINUE; -- no trigger of sync_outbox_attach()
        END;
        -- Neither one that nobody has attached nor one that has all that follows, as a dump of 0.2.0 can bring it.
        CONTINUE WHEN pg_catalog.json_typeof(columns) OPERATOR(pg_catalog.<>) 'object'
                   OR columns OPERATOR(pg_catalog.->) 'target' IS NULL OR columns OPERATOR(pg_catalog.->) 'named' IS NOT NULL;
        SELECT pg_catalog.string_agg(pg_catalog.format(',"%s_attnums":%s,"%s_places":%s', l.list, n.numbers, l.list, n.places), ''
                                     ORDER BY l.list DESC)
          INTO added
          FROM (VALUES ('exclude'), ('columns')) AS l (list)
         CROSS JOIN LATERAL (
               SELECT pg_catalog.json_agg(coalesce(a.attnum, 0) ORDER BY c.nth) AS numbers,
                      pg_catalog.json_agg(coalesce(a.place, 0) ORDER BY c.nth) AS places
                 FROM pg_catalog.json_array_elements_text(
                          CASE WHEN pg_catalog.json_typeof(columns OPERATOR(pg_catalog.->) l.list) OPERATOR(pg_catalog.=) 'array'
                               THEN columns OPERATOR(pg_catalog.->) l.list END) WITH ORDINALITY AS c (name, nth)
                 LEFT JOIN (SELECT attname, attnum, pg_catalog.row_number() OVER (ORDER BY attnum) AS place
                              FROM pg_catalog.pg_attribute
                             WHERE attrelid OPERATOR(pg_catalog.=) one.root AND attnum OPERATOR(pg_catalog.>) 0
                               AND NOT attisdropped) a
                   ON a.attname OPERATOR(pg_catalog.=) c.name) n
         WHERE n.numbers IS NOT NULL;
        UPDATE pg_catalog.pg_trigger
           SET tgargs = pg_catalog.convert_to(
                   pg_catalog.format('%s%s%s,"named":%s}', pg_catalog.rtrim(one.options, '}'), added,
                       CASE WHEN added IS NOT NULL THEN pg_catalog.format(',"attnums_of":%s', one.root) END, one.name),
                   pg_catalog.getdatabaseencoding())
                        OPERATOR(pg_catalog.||) pg_catalog.decode('00', 'hex')
         WHERE oid OPERATOR(pg_catalog.=) one.oid;
    END LOOP;
END
$numbers$;

COMMENT ON TABLE @extschema@.sync_outbox_lane IS
    'ranges of ids that sync_outbox_backfill() or a table that was renamed put into another priority than others of that name: while one is there, the sender looks across priorities so that the order of a key holds';
