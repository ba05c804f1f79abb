-- The careful one: all rows of a statement at once, from its transition table.
CREATE TABLE outbox (
    id bigserial PRIMARY KEY, table_name text NOT NULL, op text NOT NULL, data jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now());

CREATE FUNCTION capture() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox (table_name, op, data) SELECT TG_TABLE_NAME, TG_OP, to_jsonb(changed) FROM changed;
    RETURN NULL;
END
$$;

CREATE TRIGGER capture_insert AFTER INSERT ON sales REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION capture();
CREATE TRIGGER capture_update AFTER UPDATE ON sales REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION capture();
CREATE TRIGGER capture_delete AFTER DELETE ON sales REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION capture();
