"""Single-row UPDATEs, each a transaction, by pgbench."""

import re
from collections import defaultdict
from dataclasses import dataclass

from measuring import median
from report import Table, count, ratio
from variants import BARE

SCRIPT = """\\set id random(1, {rows})
UPDATE sales SET quantity = quantity + 1, sold_at = sold_at + interval '1 minute' WHERE id = :id;
"""


@dataclass(frozen=True)
class Load:
    title: str
    clients: int
    synchronous_commit: str


ASYNC = Load("4 clients, synchronous_commit = off", 4, "off")
SYNC = Load("16 clients, synchronous_commit = on", 16, "on")


def pgbench(at, script, clients, seconds, **settings):
    """Transactions a second of a script that stands in the data directory."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    said = at.server.run.call("pgbench", "-n", "-M", "prepared", "-c", clients, "-j", 2, "-T", seconds,
                              "-f", at.server.data / script, f"{at.server.dsn('bench')} options='{options}'")
    return float(re.search(r"^tps = ([0-9.]+)", said, re.MULTILINE)[1])


def write_script(at, rows):
    (at.server.data / "single.sql").write_text(SCRIPT.format(rows=rows), encoding="utf-8")
    (at.server.data / "single.sql").chmod(0o644)
    return "single.sql"


class Singles:
    def __init__(self, at, variants, plan):
        self.at = at
        self.variants = [variant for variant in variants if variant.name in plan.single_rows]
        self.rows = plan.bulk_rows
        self.seconds = plan.pgbench_seconds
        self.script = write_script(at, self.rows)
        self.rates = defaultdict(list)

    def round(self):
        for variant in self.variants:
            self._prepare(variant)
            for load in (ASYNC, SYNC):
                variant.empty_outbox(self.at.db)
                self.at.db.run("CHECKPOINT")
                self.rates[variant, load].append(
                    pgbench(self.at, self.script, load.clients, self.seconds, search_path=f"{variant.schema},public",
                            synchronous_commit=load.synchronous_commit))

    def _prepare(self, variant):
        """A freshly filled table, filled without capture."""
        db = self.at.db
        variant.enter(db)
        db.run("TRUNCATE sales")
        db.run("SET session_replication_role = replica")
        self.at.insert("sales", self.rows)
        db.run("RESET session_replication_role")
        db.run("VACUUM ANALYZE sales")

    def tps(self, variant, load):
        return median(self.rates[variant, load])

    def share(self, variant, load):
        return self.tps(variant, load) / self.tps(BARE, load)

    def table(self):
        heads = (head for load in (ASYNC, SYNC) for head in (f"tps, {load.title}", "of bare"))
        table = Table("single-row UPDATE", *heads)
        for variant in self.variants:
            cells = ((count(self.tps(variant, load)), ratio(self.tps(variant, load), self.tps(BARE, load)))
                     for load in (ASYNC, SYNC))
            table.add(variant.title, *(cell for pair in cells for cell in pair))
        return table
