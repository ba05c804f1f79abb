-- The least that people write by hand: a row trigger, the whole row as jsonb.
CREATE TABLE outbox (
    id bigserial PRIMARY KEY, table_name text NOT NULL, op text NOT NULL, data jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now());

CREATE FUNCTION capture() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO outbox (table_name, op, data) VALUES (TG_TABLE_NAME, TG_OP, to_jsonb(OLD));
    ELSE
        INSERT INTO outbox (table_name, op, data) VALUES (TG_TABLE_NAME, TG_OP, to_jsonb(NEW));
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON sales FOR EACH ROW EXECUTE FUNCTION capture();
