-- What a general one becomes: any table, its key looked up in the catalog, changed columns only, a unique key per change.
CREATE TABLE outbox (
    id bigserial PRIMARY KEY, dedup_key text NOT NULL UNIQUE, schema_name text NOT NULL, table_name text NOT NULL,
    op text NOT NULL, pk jsonb NOT NULL, data jsonb, status text NOT NULL DEFAULT 'PENDING',
    attempts int NOT NULL DEFAULT 0, created_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX ON outbox (status, id);

CREATE FUNCTION capture() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    after  jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
    key    jsonb;
BEGIN
    SELECT jsonb_object_agg(a.attname, coalesce(before, after) -> a.attname) INTO key
      FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
     WHERE i.indrelid = TG_RELID AND i.indisprimary;
    IF TG_OP = 'UPDATE' THEN
        SELECT jsonb_object_agg(n.key, n.value) INTO after
          FROM jsonb_each(after) n WHERE n.value IS DISTINCT FROM before -> n.key;
        IF after IS NULL THEN
            RETURN NULL;
        END IF;
    END IF;
    INSERT INTO outbox (dedup_key, schema_name, table_name, op, pk, data)
    VALUES (md5(concat_ws('|', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP, key, txid_current(), clock_timestamp(), random())),
            TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP, key, after)
    ON CONFLICT (dedup_key) DO NOTHING;
    RETURN NULL;
END
$$;

CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON sales FOR EACH ROW EXECUTE FUNCTION capture();
