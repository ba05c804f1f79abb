"""A session keeps no memory for plans that are made anew, for backfills, or for partitions that come and go."""

import pytest

from support.casts import SQL_CAST


def leaves_no_memory(db, work, times):
    """After the first rounds the session is as large as before, however often it does the work."""
    total = "SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts"
    for _ in range(20):
        work()
    before = db.value(total)
    for _ in range(times):
        work()
    after = db.value(total)
    assert after - before < 300_000, (before, after)


def test_backfills_leave_no_memory(db):
    db.run("""CREATE TYPE mood AS ENUM ('sad', 'ok');
              CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE sql AS $$ SELECT '{"m":1}'::json $$;
              CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
              CREATE TABLE m (id int PRIMARY KEY, v mood, r int4range, n numrange[])""")
    db.attach("m")
    db.run("INSERT INTO m VALUES (1, 'ok', '[1,2)', '{}')")
    leaves_no_memory(db, lambda: db.run("SELECT sync_outbox_backfill('m')"), 300)


def test_plain_plans_leave_no_memory(db):
    """As the backfill above, by writes whose plan is made anew, without code of users."""
    db.run("CREATE TABLE m (id int PRIMARY KEY, r int4range, n numrange[], c text)")
    db.attach("m")
    db.run("INSERT INTO m VALUES (1, '[1,2)', '{\"[1,2)\"}')")
    leaves_no_memory(db, lambda: db.run("SELECT sync_outbox_backfill('m')"), 500)


def test_ddl_in_one_session_leaves_no_memory(db):
    """The writer's plan is made anew after every ALTER TABLE."""
    db.run("""CREATE TYPE mood AS ENUM ('sad', 'ok');
              CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE sql AS $$ SELECT '{"m":1}'::json $$;
              CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
              CREATE TABLE m (id serial PRIMARY KEY, v mood)""")
    db.attach("m")

    def round():
        db.run("ALTER TABLE m SET (fillfactor = 90)")
        db.run("INSERT INTO m (v) VALUES ('ok')")
    leaves_no_memory(db, round, 300)


CASTS = {
    "sql": SQL_CAST,
    "none": "CREATE TYPE colour AS ENUM ('red', 'green', 'bad'); CREATE TABLE paint (id int PRIMARY KEY, c colour)",
    "range": "CREATE TABLE paint (id int PRIMARY KEY, c text, r int4range[] DEFAULT '{}', m numrange DEFAULT '[1,2)')".replace("\\\\,", ","),
}


@pytest.mark.parametrize("cast", CASTS)
def test_plans_that_are_made_anew_leave_no_memory_behind(db, cast):
    """As they are after every ANALYZE, VACUUM or ALTER TABLE of somebody else."""
    db.run(CASTS[cast])
    db.attach("paint")
    other = db.session()

    def used():
        return db.value("SELECT sum(total_bytes) FROM pg_backend_memory_contexts")

    def rounds(first, last):
        for n in range(first, last):
            other.execute(f"ALTER TABLE paint SET (fillfactor = {50 + n % 50})")
            db.run("INSERT INTO paint VALUES (%s, 'red')", [n])
    rounds(0, 50)
    before = used()
    rounds(50, 350)
    assert used() - before < 300_000, db.rows("SELECT name, ident, parent, count(*), sum(total_bytes) FROM pg_backend_memory_contexts GROUP BY 1, 2, 3 ORDER BY 5 DESC LIMIT 4")


def test_memory_of_many_partitions_that_come_and_go(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY LIST (id)")
    db.attach("t")

    def round(n):
        db.run(f"CREATE TABLE t_{n} PARTITION OF t FOR VALUES IN ({n}); INSERT INTO t VALUES ({n}, 'x'); DROP TABLE t_{n}")
    def used():
        return db.value("SELECT sum(total_bytes) FROM pg_backend_memory_contexts")
    for n in range(60):
        round(n)
    before = used()
    for n in range(60, 360):
        round(n)
    assert used() - before < 1_000_000
