-- A row trigger that does nothing: what PostgreSQL itself needs for calling one.
CREATE FUNCTION capture() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON sales FOR EACH ROW EXECUTE FUNCTION capture();
