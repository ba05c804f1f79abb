"""Ways to capture the writes to a table, side by side: each has a schema of its own with the table `sales` in it."""

import pathlib
from dataclasses import dataclass

import psycopg

from stage import SOURCE

PEERS = pathlib.Path(__file__).resolve().parent / "peers"


@dataclass(frozen=True)
class Variant:
    name: str
    title: str
    # Where the changes go.
    outbox: str | None = None
    setup: str | None = None
    is_peer: bool = False
    # Of the rows that peers capture: what is ten times dearer need not run as long.
    share: float = 1.0

    @property
    def schema(self):
        return f"by_{self.name}"

    def rows(self, plan):
        """How many rows its bulk statements have."""
        return int(plan.peer_rows * self.share) if self.is_peer else plan.bulk_rows

    def create(self, db):
        """False where it cannot be had."""
        db.run(f"CREATE SCHEMA {self.schema}")
        self.enter(db)
        db.run(SOURCE.format(name="sales"))
        try:
            if self.setup:
                db.run(self.setup)
        except psycopg.errors.FeatureNotSupported:
            return False
        return True

    def enter(self, db):
        db.run(f"SET search_path = {self.schema}, public")

    def empty_outbox(self, db):
        if self.outbox:
            db.run(f"TRUNCATE {self.outbox}")


def _peer(name, title, outbox="outbox", **options):
    setup = (PEERS / f"{name}.sql").read_text(encoding="utf-8")
    return Variant(name, title, outbox=outbox, setup=setup, is_peer=True, **options)


BARE = Variant("bare", "nothing attached")
OURS = Variant("ours", "**sync_outbox**", outbox="public.sync_outbox", setup="SELECT sync_outbox_attach('sales')")
ROW = _peer("row", "PL/pgSQL, row trigger, minimal")
STATEMENT = _peer("statement", "PL/pgSQL, transition table")
FULL = _peer("full", "PL/pgSQL, row trigger, full", share=0.2)
PGQ = _peer("pgq", "pgq 3, trigger in C", outbox="pgq.event_1")
NOTHING = _peer("nothing", "row trigger that does nothing", outbox=None)

COMPARED = [BARE, OURS, PGQ, STATEMENT, ROW, FULL]
