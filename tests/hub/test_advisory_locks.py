"""Advisory locks that the code of a table's owner takes are given back, and those of the caller stay."""

import json

import pytest
from psycopg import errors

from support.bait import mallory
from support.hub_database import change, insert, keys


def test_code_leaves_no_lock_in_the_session(hub):
    role, session = mallory(hub)
    session.execute("""CREATE FUNCTION evil.lock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(n) FROM generate_series(1, 50) n; RETURN NEW; END $$;
        CREATE TRIGGER lock BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.lock();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER lock""")
    with hub.session() as applying:
        hub.apply(change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), session=applying)
        assert applying.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()").fetchone()[0] == 0


@pytest.mark.parametrize("code", ["PERFORM pg_advisory_unlock_all()", "PERFORM pg_advisory_unlock(7), pg_advisory_unlock(7)",
                                  "PERFORM pg_advisory_unlock_all(), pg_advisory_lock(7), pg_advisory_lock_shared(8)", "RAISE 'no'",
                                  "PERFORM pg_advisory_lock(n) FROM generate_series(1, 9) n; RAISE 'no'"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_own_locks_stay(hub, code, fails):
    role, session = mallory(hub)
    session.execute(f"""CREATE FUNCTION evil.lock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {code}; RETURN NEW; END $$;
        CREATE TRIGGER lock BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.lock();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER lock""")
    held = "SELECT objid, mode FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() ORDER BY 1, 2"
    with hub.session(autocommit=False) as applying:
        applying.execute("SELECT pg_advisory_lock(7) a, pg_advisory_lock(7) b, pg_advisory_lock_shared(7), pg_advisory_lock(5)")
        applying.execute("SELECT pg_advisory_xact_lock(6)")
        before = applying.execute(held).fetchall()
        body = json.dumps({"changes": [change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil")]})
        applying.execute("SAVEPOINT s")
        try:
            applying.execute("SELECT sync_outbox_apply(%s::json)" + (", 1 / (random() * 0)" if fails else ""), [body])
        except errors.DivisionByZero:
            applying.execute("ROLLBACK TO SAVEPOINT s")
        assert applying.execute(held).fetchall() == before
        applying.rollback()
        assert [tuple(row) for row in applying.execute(held)] == [(5, "ExclusiveLock"), (7, "ExclusiveLock"), (7, "ShareLock")]
        assert applying.execute("SELECT pg_advisory_unlock(7) a, pg_advisory_unlock(7) b, pg_advisory_unlock(5)").fetchone() == (True,) * 3
        assert [tuple(row) for row in applying.execute(held)] == [(7, "ShareLock")]


@pytest.mark.parametrize("code", ["PERFORM pg_advisory_lock(n) FROM generate_series(1, 100000) n",
                                  "BEGIN PERFORM pg_advisory_lock(n) FROM generate_series(1, 100000) n; EXCEPTION WHEN division_by_zero THEN NULL; END"])
def test_locks_that_code_takes_until_there_is_no_room(hub, code):
    """Those of the session are not given back by a rollback: the next change would find no room, nor would anybody."""
    role, session = mallory(hub)
    session.execute(f"""CREATE FUNCTION evil.lock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {code}; RETURN NEW; END $$;
        CREATE TRIGGER lock BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.lock();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER lock""")
    hub.run("CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY HASH (id)")
    for n in range(20):
        hub.run(f"CREATE TABLE parted_{n} PARTITION OF parted FOR VALUES WITH (MODULUS 20, REMAINDER {n})")
    hub.run("SELECT sync_outbox_accept('parted')")
    bait, good = change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), change("TRUNCATE", None, None, "parted")
    with hub.session() as applying:
        answer = hub.apply(insert(id=1), bait, good, session=applying)
        assert [e["dedup_key"] for e in answer["errors"]] == keys(bait) and good["dedup_key"] in answer["acked"]
        assert applying.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()[0] == 0
