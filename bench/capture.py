"""Part 1: what capture costs the writers of a table."""

from collections import defaultdict
from dataclasses import dataclass

import singles
from measuring import Usage, Watch, median, wal_position
from report import Goals, Table, count, progress, ratio
from stage import ROWS, stage
from variants import BARE, COMPARED, FULL, NOTHING, OURS, PGQ, ROW

MIB = 1024 ** 2
OPERATIONS = ["INSERT", "UPDATE", "DELETE", "COPY"]
# Two of seven columns.
UPDATE = "UPDATE sales SET quantity = quantity + 1, sold_at = sold_at + interval '1 minute'"
SIZE = """
    SELECT pg_total_relation_size(%(outbox)s) + coalesce(sum(pg_total_relation_size(inhrelid)), 0)
      FROM pg_inherits WHERE inhparent = %(outbox)s::regclass"""


@dataclass(frozen=True)
class Cost:
    """Of one bulk statement, per row: microseconds, bytes of WAL, bytes of the outbox with its indexes."""
    us: float
    wal: float
    size: float


class Bulk:
    """Bulk statements, variant by variant and round by round."""

    def __init__(self, at, variants, plan):
        self.at = at
        self.db = at.db
        self.variants = variants
        self.plan = plan
        self.costs = defaultdict(list)
        self.floors = defaultdict(list)
        self.payload = None
        self.files = {}

    def round(self):
        for variant in self.variants:
            self._one(variant)

    def _one(self, variant):
        rows = variant.rows(self.plan)
        variant.enter(self.db)
        self.db.run("TRUNCATE sales")
        inserted = ROWS.format(first=1, last=rows)
        if rows not in self.files:
            self.files[rows] = self._file(f"rows.{rows}", f"({inserted})")
        copy = f"COPY sales FROM '{self.files[rows]}'"
        statements = [f"INSERT INTO sales {inserted}", UPDATE, "DELETE FROM sales", copy]
        for operation, statement in zip(OPERATIONS, statements):
            if operation == "COPY":
                self.db.run("TRUNCATE sales")
            variant.empty_outbox(self.db)
            cost = self._timed(statement, rows, variant.outbox)
            self.costs[variant, operation].append(cost)
            if variant is OURS and operation != "COPY":
                self._floor(operation, rows)
        variant.empty_outbox(self.db)

    def _floor(self, operation, rows):
        """The rows that were captured, loaded by COPY: no capture through SQL can be cheaper than that."""
        if operation not in self.files:
            self.files[operation] = self._file(f"captured.{operation}", "sync_outbox")
        if operation == "INSERT" and self.payload is None:
            self.payload = float(self.db.value(
                "SELECT avg(octet_length(pk::text) + coalesce(octet_length(data::text), 0)) FROM sync_outbox"))
        self.db.run("TRUNCATE sync_outbox")
        copy = f"COPY sync_outbox FROM '{self.files[operation]}'"
        self.floors[operation].append(self._timed(copy, rows, OURS.outbox))

    def _timed(self, statement, rows, outbox):
        self.db.run("CHECKPOINT")
        before = wal_position(self.db)
        with Watch() as watch:
            self.db.run(statement)
        wal = wal_position(self.db) - before
        size = float(self.db.value(SIZE, {"outbox": outbox})) if outbox else 0
        return Cost(watch.seconds * 1e6 / rows, wal / rows, size / rows)

    def _file(self, name, query):
        path = self.at.server.data / name
        self.db.run(f"COPY {query} TO '{path}'")
        return path

    # What came of it

    def added(self, variant, operation, what="us"):
        """The median over that of the bare table."""
        return self.median(variant, operation, what) - self.median(BARE, operation, what)

    def median(self, variant, operation, what):
        return median(getattr(cost, what) for cost in self.costs[variant, operation])

    def floor(self, operation):
        return median(cost.us for cost in self.floors[operation])


def measure(run, plan):
    # Without images of whole pages, so that WAL is what the statement needs and not when the last checkpoint was.
    with stage(run, "capture", full_page_writes="off") as at:
        variants = [variant for variant in COMPARED if variant.create(at.db)]
        bulk = Bulk(at, variants, plan)
        single = singles.Singles(at, variants, plan)
        for n in range(plan.rounds):
            progress(f"capture, round {n + 1} of {plan.rounds}")
            bulk.round()
            single.round()
        progress(f"capture, UPDATE of {count(plan.large_update_rows)} rows")
        memory = {variant: _memory_of_update(at, variant, plan.large_update_rows) for variant in (NOTHING, OURS)}
    return _report(plan, variants, bulk, single, memory)


def _memory_of_update(at, variant, rows):
    """The most memory of its own that a backend has while it updates that many rows in one statement, in bytes."""
    if variant is NOTHING:
        variant.create(at.db)
    session = at.db.session()
    session.execute(f"SET search_path = {variant.schema}, public")
    session.execute("SET session_replication_role = replica")
    session.execute("TRUNCATE sales")
    session.execute(f"INSERT INTO sales {ROWS.format(first=1, last=rows)}")
    session.execute("RESET session_replication_role")
    with Usage(session.info.backend_pid) as usage:
        session.execute(UPDATE)
    session.execute("TRUNCATE sales")
    variant.empty_outbox(at.db)
    session.close()
    return usage.memory


def _report(plan, variants, bulk, single, memory):
    times = Table("us a row, bulk statements", "rows", *OPERATIONS)
    times.add(BARE.title, count(plan.bulk_rows), *(f"{bulk.median(BARE, op, 'us'):.2f}" for op in OPERATIONS))
    for variant in variants[1:]:
        times.add(variant.title, count(variant.rows(plan)), *(_beside_ours(bulk, variant, op) for op in OPERATIONS))
    times.add("COPY of the captured rows (the floor)", count(plan.bulk_rows),
              *(f"{bulk.floor(op):.2f}" for op in OPERATIONS[:3]), "")
    times.add("sync_outbox, share of the floor", "",
              *(ratio(bulk.added(OURS, op), bulk.floor(op)) for op in OPERATIONS[:3]), "")

    sizes = Table("bytes a change", *(f"{of}, {op}" for of in ("WAL", "outbox") for op in OPERATIONS[:3]))
    for variant in variants[1:]:
        sizes.add(variant.title, *(count(bulk.added(variant, op, "wal")) for op in OPERATIONS[:3]),
                  *(count(bulk.median(variant, op, "size")) for op in OPERATIONS[:3]))

    growth = Table(f"memory of one UPDATE of {count(plan.large_update_rows)} rows", "MiB")
    for variant, used in memory.items():
        growth.add(variant.title, count(used / MIB))

    goals = Goals()
    inserting = bulk.added(OURS, "INSERT")
    goals.at_most("bulk INSERT, share of the floor", 0.8, 0.6, inserting / bulk.floor("INSERT"))
    for variant, limit in ((ROW, 4), (FULL, 20)):
        goals.at_least(f"bulk INSERT, x cheaper than {variant.title}", limit, None,
                       bulk.added(variant, "INSERT") / inserting, "{:.2f}")
    for op in ("UPDATE", "DELETE"):
        goals.at_least(f"bulk {op}, x cheaper than {ROW.title}", 3, 5,
                       bulk.added(ROW, op) / bulk.added(OURS, op), "{:.2f}")
    goals.at_most("memory of the large UPDATE beyond PostgreSQL's own, MiB", 16, None,
                  (memory[OURS] - memory[NOTHING]) / MIB, "{:.0f}")
    wal = bulk.added(OURS, "INSERT", "wal")
    goals.at_most(f"WAL of an INSERT, share of that of {ROW.title}", 0.8, None,
                  wal / bulk.added(ROW, "INSERT", "wal"))
    goals.at_most("WAL of an INSERT beyond its payload, bytes", None, 160, wal - bulk.payload, "{:.0f}")
    goals.at_least("single-row UPDATE, async, 4 clients, share of bare", 0.78, 0.88, single.share(OURS, singles.ASYNC))
    if PGQ in variants:
        goals.at_least("single-row UPDATE, async, 4 clients, x pgq", 1.5, None,
                       single.tps(OURS, singles.ASYNC) / single.tps(PGQ, singles.ASYNC))
    goals.at_least("single-row UPDATE, fsync, 16 clients, share of bare", 0.85, None, single.share(OURS, singles.SYNC))

    blocks = [times]
    if PGQ not in variants:
        blocks.append("pgq could not be had.")
    blocks.append("What is below \"nothing attached\" comes on top of it. In brackets: times what sync_outbox adds.")
    return [*blocks, sizes, f"The payload of a captured INSERT (`pk` and `data`) is {bulk.payload:.0f} bytes.",
            single.table(), growth, goals]


def _beside_ours(bulk, variant, operation):
    added = bulk.added(variant, operation)
    return f"{added:.2f}" if variant is OURS else f"{added:.2f} ({added / bulk.added(OURS, operation):.1f} x)"
