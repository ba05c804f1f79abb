"""Writers that get in each other's way on two tables, and the truth about what they committed, told by plain SQL.

`truth` is filled by triggers that know nothing of the extension, in the writers' own transactions. Its `seq` is drawn after
a statement has locked its rows, so that by `seq` the changes of one key stand in the order in which they happened."""

import threading

from .arrivals import Histories

# Keys that everybody writes; as many again, negative, are where key changes lead.
SHARED = 2000
# Rows that one statement of a bulk writer inserts; with what follows, a committed round is 2.5 times as many changes.
BULK = 2000

TABLES = f"""
    CREATE SEQUENCE versions CACHE 1000;
    CREATE SEQUENCE rows;
    CREATE TABLE stock (id int PRIMARY KEY, version bigint NOT NULL DEFAULT nextval('versions'),
        -- Never changed: tells which new row was which old one when a key changes.
        row_no bigint NOT NULL DEFAULT nextval('rows'));
    CREATE TABLE price (LIKE stock INCLUDING ALL) PARTITION BY RANGE (id);
    CREATE TABLE price_shared PARTITION OF price FOR VALUES FROM (MINVALUE) TO ({SHARED + 1});
    CREATE TABLE price_more PARTITION OF price FOR VALUES FROM ({SHARED + 1}) TO (MAXVALUE);

    CREATE TABLE truth (seq bigserial, table_name text, op text, id int, new_id int, version bigint);
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO truth (table_name, op, id, version) SELECT TG_TABLE_NAME, TG_OP, id, version FROM now;
        ELSIF TG_OP = 'DELETE' THEN
            INSERT INTO truth (table_name, op, id) SELECT TG_TABLE_NAME, TG_OP, id FROM was;
        ELSE
            INSERT INTO truth (table_name, op, id, new_id, version)
            SELECT TG_TABLE_NAME, TG_OP, was.id, nullif(now.id, was.id), now.version FROM was JOIN now USING (row_no);
        END IF;
        RETURN NULL;
    END $$;
"""

# What is done to each of the tables. An action is a savepoint, rolled back if it fails or is not to be kept.
TABLE = f"""
    CREATE TRIGGER tell_insert AFTER INSERT ON {{table}} REFERENCING NEW TABLE AS now EXECUTE FUNCTION tell();
    CREATE TRIGGER tell_update AFTER UPDATE ON {{table}} REFERENCING OLD TABLE AS was NEW TABLE AS now EXECUTE FUNCTION tell();
    CREATE TRIGGER tell_delete AFTER DELETE ON {{table}} REFERENCING OLD TABLE AS was EXECUTE FUNCTION tell();

    CREATE FUNCTION act_on_{{table}}(keep boolean DEFAULT true) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        a int := 1 + floor(random() * {SHARED});
        b int := least(a + floor(random() * 8), {SHARED});
    BEGIN
        CASE floor(random() * 6)
        WHEN 0 THEN
            INSERT INTO {{table}} SELECT generate_series(a, b)
            ON CONFLICT (id) DO UPDATE SET version = nextval('versions');
        WHEN 1 THEN
            UPDATE {{table}} SET version = nextval('versions') WHERE id BETWEEN a AND b;
        WHEN 2 THEN
            DELETE FROM {{table}} WHERE id BETWEEN a AND b;
        WHEN 3 THEN
            DELETE FROM {{table}} WHERE id = a;
            INSERT INTO {{table}} VALUES (a);
        WHEN 4 THEN
            UPDATE {{table}} SET id = -id, version = nextval('versions') WHERE id BETWEEN a AND b OR id BETWEEN -a - 3 AND -a;
        WHEN 5 THEN
            MERGE INTO {{table}} USING generate_series(a, b) AS wanted ON id = wanted
            WHEN MATCHED AND id % 2 = 0 THEN DELETE
            WHEN MATCHED THEN UPDATE SET version = nextval('versions')
            WHEN NOT MATCHED THEN INSERT (id) VALUES (wanted);
        END CASE;
        IF NOT keep THEN RAISE 'not to be kept'; END IF;
    EXCEPTION WHEN raise_exception OR unique_violation OR deadlock_detected THEN
        NULL;
    END $$;

    CREATE FUNCTION update_in_vain_{{table}}(a int, b int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        UPDATE {{table}} SET version = nextval('versions') WHERE id BETWEEN a AND b;
        RAISE 'not to be kept';
    EXCEPTION WHEN raise_exception THEN NULL;
    END $$;

    -- Statements of many rows of its own keys, one transaction a round, every eighth rolled back.
    CREATE PROCEDURE write_bulk_{{table}}(base int, rounds int) LANGUAGE plpgsql AS $$
    DECLARE
        a int;
        b int;
    BEGIN
        FOR round IN 1..rounds LOOP
            a := base + round * {BULK};
            b := a + {BULK} - 1;
            INSERT INTO {{table}} SELECT generate_series(a, b);
            PERFORM update_in_vain_{{table}}(a, a + {BULK} / 4);
            UPDATE {{table}} SET version = nextval('versions') WHERE id BETWEEN a AND b;
            PERFORM act_on_{{table}}();
            DELETE FROM {{table}} WHERE id BETWEEN a AND b AND id % 2 = 0;
            IF round % 8 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
        END LOOP;
    END $$;
"""

# Small transactions on the keys that all share: some hold their commit back, some are rolled back, some have more savepoints
# than a backend keeps in its own list.
SMALL = """
    CREATE PROCEDURE write_small(rounds int) LANGUAGE plpgsql AS $$
    BEGIN
        FOR round IN 1..rounds LOOP
            FOR action IN 1..CASE WHEN random() < 0.002 THEN 80 ELSE 1 + floor(random() * 3) END LOOP
                IF random() < 0.7 THEN
                    PERFORM act_on_stock(random() < 0.8);
                ELSE
                    PERFORM act_on_price(random() < 0.8);
                END IF;
            END LOOP;
            IF random() < 0.03 THEN PERFORM pg_sleep(random() * 0.02); END IF;
            IF random() < 0.1 THEN ROLLBACK; ELSE COMMIT; END IF;
        END LOOP;
    END $$;
"""


def prepare(db):
    """Makes the tables, attached, and what the writers call."""
    db.run(TABLES)
    for table in ("stock", "price"):
        db.run(TABLE.format(table=table))
    db.run(SMALL)
    db.attach("stock")
    db.attach("price", priority="HIGH")
    db.run(f"INSERT INTO stock SELECT generate_series(1, {SHARED}); INSERT INTO price SELECT generate_series(1, {SHARED})")


def write(db, least):
    """Runs all writers side by side until they have committed at least that many changes."""
    failed = []

    def writer(work, *arguments):
        session = db.session()
        # Deadlocks are part of it; waiting a second for each is not.
        session.execute("SET deadlock_timeout = '10ms'")

        def run():
            try:
                work(session, *arguments)
            except BaseException as error:
                failed.append(error)
        return threading.Thread(target=run, daemon=True)

    rounds = 1 + least // (BULK * 5 // 2) * 8 // 7
    writers = [
        *[writer(_call, f"CALL write_bulk_stock({half * 100_000_000}, {rounds * 7 // 20})") for half in (1, 2)],
        writer(_call, f"CALL write_bulk_price({100_000_000}, {1 + rounds * 3 // 10})"),
        *[writer(_call, f"CALL write_small({least // 200})") for _ in range(4)],
        writer(_write_in_two_phases, f"{db.name}_phases", least // 5000),
    ]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert not failed, failed


def committed(db):
    """(how many changes, their histories), by the truth."""
    lines = db.value("""SELECT string_agg(concat_ws(',', table_name, op, id, coalesce(new_id::text, ''), coalesce(version::text, '')), ' ')
        FROM (SELECT * FROM truth ORDER BY seq) AS ordered""").split()
    histories = Histories()
    for line in lines:
        histories.tell(*line.split(","))
    return len(lines), histories


def _call(session, procedure):
    session.execute(procedure)


def _write_in_two_phases(session, name, rounds):
    """Transactions that are prepared, and committed or rolled back when others have gone past them."""
    for turn in range(rounds):
        session.execute("BEGIN")
        session.execute("SELECT act_on_stock(), act_on_price()")
        session.execute("SAVEPOINT s")
        session.execute("SELECT act_on_stock(), act_on_price()")
        session.execute("ROLLBACK TO s")
        session.execute("SELECT act_on_stock()")
        session.execute(f"PREPARE TRANSACTION '{name}'")
        session.execute("SELECT pg_sleep(0.02)")
        session.execute(f"{'ROLLBACK' if turn % 4 == 3 else 'COMMIT'} PREPARED '{name}'")
