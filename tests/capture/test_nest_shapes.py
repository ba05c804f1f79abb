"""Random nests on shapes that test_order_property.py does not try: a table that refers to itself, an attached child whose
key cascades, keys of other types, sub-partitions with keys of two columns."""

import os
import random

import pytest

from support import nests
from support.replay import replay, rows

NESTS = int(os.environ.get("SYNC_OUTBOX_NESTS", 150))
FIRST = int(os.environ.get("SYNC_OUTBOX_NEST_SEED", 50_001))

# How a shape is filled: it has no column for the row that a row refers to, or it has one.
PLAIN = "INSERT INTO t (id, v, w) SELECT n, n, 's' FROM generate_series(1, 5) n"
TREE = ("INSERT INTO t (id, v, w, p)"
        " SELECT n, n, 's', CASE WHEN n > 1 THEN n / 2 END FROM generate_series(1, 5) n")
REFERS = "CREATE TABLE t (id int PRIMARY KEY, v int, w text, p int REFERENCES t ON UPDATE CASCADE ON DELETE"
SHAPES = {
    "self cascade": (f"{REFERS} CASCADE)", TREE, {}),
    "self null": (f"{REFERS} SET NULL)", TREE, {"include_old": True}),
    "self deferred": (f"{REFERS} CASCADE DEFERRABLE INITIALLY DEFERRED)", TREE, {}),
    "sub": ("""CREATE TABLE t (id int PRIMARY KEY, v int, w text) PARTITION BY HASH (id);
       CREATE TABLE t0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0) PARTITION BY LIST (id);
       CREATE TABLE t00 PARTITION OF t0 FOR VALUES IN (1,2,3,4); CREATE TABLE t01 PARTITION OF t0 DEFAULT;
       CREATE TABLE t1 (w text, x int, id int NOT NULL, v int); ALTER TABLE t1 DROP x;
       ALTER TABLE t ATTACH PARTITION t1 FOR VALUES WITH (MODULUS 2, REMAINDER 1)""", PLAIN, {"include_old": True}),
    "other key": ("""CREATE TABLE t (id int PRIMARY KEY, v int, w text,
       u int GENERATED ALWAYS AS (id * 7) STORED NOT NULL UNIQUE)""",
                  PLAIN, {"key_columns": ["u"], "include_old": True}),
    "generated": ("CREATE TABLE t (id int PRIMARY KEY, v int, w text, g int GENERATED ALWAYS AS (v * 2) STORED)",
                  PLAIN, {"include_old": True}),
    "text": ("""CREATE TABLE t (id int PRIMARY KEY, v int, w text,
       k text COLLATE "C" GENERATED ALWAYS AS (chr(64 + (id % 26)) || repeat('k', 300 * (id % 3))) STORED NOT NULL UNIQUE,
       big text DEFAULT repeat(md5('x'), 4000)); ALTER TABLE t ALTER big SET STORAGE EXTERNAL""",
             PLAIN, {"key_columns": ["k"], "include_old": True}),
    "no inserts": ("CREATE TABLE t (id int PRIMARY KEY, v int, w text)", PLAIN, {"exclude": ["w"], "always": True}),
    "excluded": ("CREATE TABLE t (id int PRIMARY KEY, v int, w text)", PLAIN, {"exclude": ["v"]}),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shape", SHAPES)
def test_nests(db, shape):
    ddl, fill, options = SHAPES[shape]
    nests.SHAPES["shape"] = ddl
    nests.prepare(db, "shape", **options)
    db.run("ALTER TABLE kid ALTER id SET NOT NULL")
    # A child whose key is the parent's
    db.run("CREATE TABLE child (id int PRIMARY KEY REFERENCES t ON UPDATE CASCADE ON DELETE CASCADE, v int)")
    db.attach("child")
    db.run("""CREATE FUNCTION childs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP <> 'DELETE' THEN PERFORM carry_out('CHILD', NEW.id); END IF; RETURN NULL; END $$;
        CREATE TRIGGER c AFTER INSERT OR UPDATE ON child FOR EACH ROW EXECUTE FUNCTION childs()""")
    hidden = options.get("exclude", [])

    def table():
        held = rows(db, "t", options.get("key_columns", ["id"]))
        return {key: {name: value for name, value in row.items() if name not in hidden} for key, row in held.items()}
    told_count = 0
    for seed in range(FIRST, FIRST + NESTS):
        rnd = random.Random(seed)
        nest = nests.Nest(rnd)
        extra = [("CHILD", None, nest.statement(inner=True)) for _ in range(rnd.randint(0, 2))]
        nest.plan += extra
        nest.plan += [(nest._event(), None, rnd.choice([
            "UPDATE child SET v = v + 1", "DELETE FROM child WHERE id = %d" % rnd.randint(1, 8),
            "INSERT INTO child SELECT id, 0 FROM t ON CONFLICT (id) DO UPDATE SET v = child.v + 10"])) for _ in range(2)]
        if fill == TREE:
            nest.plan += [(nest._event(), None,
                           "UPDATE t SET p = %d WHERE id = %d" % (rnd.randint(1, 8), rnd.randint(1, 8)))]
        rnd.shuffle(nest.plan)
        db.run("DELETE FROM plan; DELETE FROM child; DELETE FROM t")
        db.run(fill)
        db.run("INSERT INTO child SELECT id, id FROM t WHERE id < 4")
        db.run("DELETE FROM sync_outbox")
        before, cbefore = table(), rows(db, "child")
        nest.run(db)
        told = db.outbox("table_name = 't'"), db.outbox("table_name = 'child'")
        told_count += len(told[0]) + len(told[1])
        try:
            assert replay(told[0], before) == table()
            assert replay(told[1], cbefore) == rows(db, "child")
        except AssertionError as error:
            lines = [f"{c.id} {c.table_name} {c.op} {c.pk} {c.data} {c.old}" for c in told[0] + told[1]]
            error.add_note("\n".join([f"seed {seed}: {nest}", *lines, f"before {before} {cbefore}",
                                      f"now {table()} {rows(db, 'child')}"]))
            raise
    assert told_count > NESTS
