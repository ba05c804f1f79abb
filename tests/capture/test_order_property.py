"""Order inside one statement, whatever its triggers and functions do: the changes, applied in the order of their ids, give
the table, and every one of them can be applied.

SYNC_OUTBOX_NESTS=n tries n random nests of each kind instead of some; a failure names the seed of its nest, and
SYNC_OUTBOX_NEST_SEED=n begins there."""

import json
import os
import random

import pytest

from support import nests
from support.replay import replay, rows

NESTS = int(os.environ.get("SYNC_OUTBOX_NESTS", 60))
FIRST = int(os.environ.get("SYNC_OUTBOX_NEST_SEED", 1))


@pytest.fixture
def db(db, append):
    return append(db)


@pytest.mark.timeout(60 + NESTS)
@pytest.mark.parametrize("include_old", [False, True], ids=["", "with old values"])
@pytest.mark.parametrize("shape", nests.SHAPES)
def test_defect_02_changes_of_random_nests_give_the_table(db, shape, include_old):
    nests.prepare(db, shape, include_old=include_old)
    changes = 0
    for seed in range(FIRST, FIRST + NESTS):
        nest = nests.Nest(random.Random(seed))
        db.run("DELETE FROM plan; DELETE FROM t; INSERT INTO t (id, v, w) SELECT n, n, 's' FROM generate_series(1, 5) n")
        db.run("DELETE FROM sync_outbox")
        before = rows(db, "t")
        nest.run(db)
        told = db.outbox()
        changes += len(told)
        try:
            assert replay(told, before) == rows(db, "t")
        except AssertionError as error:
            error.add_note(f"seed {seed}: {nest}\n" + "\n".join(f"{c.id} {c.op} {c.pk} {c.data} {c.old}" for c in told))
            raise
    assert changes > NESTS  # the nests do something


@pytest.mark.timeout(60 + NESTS)
def test_defect_02_a_hub_that_applies_random_nests_has_the_table(db, quiet_server):
    nests.prepare(db, "plain", include_old=True)
    hub = quiet_server.create_database()
    try:
        hub.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
        hub.run("CREATE TABLE t (id int PRIMARY KEY, v int, w text); SELECT sync_outbox_accept('t')")
        db.run("INSERT INTO t SELECT n, n, 's' FROM generate_series(1, 5) n")
        for seed in range(FIRST, FIRST + NESTS):
            nest = nests.Nest(random.Random(seed))
            nest.run(db)
            told = [{"dedup_key": str(c.dedup_key), "schema": c.schema_name, "table": c.table_name, "op": c.op, "pk": c.pk,
                     "data": c.data, "old": c.old} for c in db.outbox()]
            db.run("DELETE FROM sync_outbox")
            answer = json.loads(hub.value("SELECT sync_outbox_apply(%s::json)::text", [json.dumps({"changes": told})]))
            assert (answer["errors"], answer["conflicts"]) == ([], []), f"seed {seed}: {nest}\n{told}"
            assert rows(hub, "t") == rows(db, "t"), f"seed {seed}: {nest}\n{told}"
    finally:
        hub.close()
        quiet_server.drop_database(hub.name)
