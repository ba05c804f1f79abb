"""Writers that write down what they do, before and after it: the load of every fault test.

Each change takes its place in the history of its key from the table `revision`, whose row lock is held to the end of the
transaction, and each transaction leaves a row in `witness`. Neither knows anything of the extension, and both vanish with
the transaction. So the witness says which transactions there were in the end, also of those whose COMMIT nobody answered."""

import os
import random
import socket
import threading
import time

import psycopg
from psycopg import errors

from .books import Book, Writers, word

# Keys that everybody writes; as many again, negative, are where key changes lead.
SHARED = 150

SCHEMA = f"""
    CREATE TABLE witness (tx text PRIMARY KEY);
    CREATE TABLE revision (table_name text, id bigint, place int NOT NULL, live boolean NOT NULL, PRIMARY KEY (table_name, id));
    CREATE TABLE stock (id bigint PRIMARY KEY, note text, qty int);
    CREATE TABLE price (id bigint PRIMARY KEY, note text, qty int);
    CREATE TABLE ticket (id bigint PRIMARY KEY, note text, qty int);
    INSERT INTO revision SELECT t, k, 0, false FROM unnest('{{stock,price}}'::text[]) t, generate_series(-{SHARED}, {SHARED}) k;
"""
PRIORITIES = {"stock": "NORMAL", "price": "HIGH", "ticket": "LOW"}

# What may end a transaction here: its turn to be killed, cancelled, or to wait too long. Anything else is a finding.
EXPECTED = (errors.QueryCanceled, errors.LockNotAvailable, errors.DeadlockDetected, errors.AdminShutdown, errors.CrashShutdown,
            errors.CannotConnectNow, errors.SerializationFailure, errors.TooManyConnections, errors.ObjectInUse)


def prepare(db):
    """Makes the tables, attached, and what the writers need."""
    db.run(SCHEMA)
    for table, priority in PRIORITIES.items():
        db.attach(table, priority=priority)


class Transaction:
    """One transaction as its writer will have written it down."""

    def __init__(self, name, connection):
        self.name = name
        self.connection = connection
        self.changes = []
        self.count = 0

    def change(self, histories, op, key, data):
        """`histories`: (table, key, place) of one key or, for a change of the key, of both."""
        self.count += 1
        its_word = word(op, {"id": key}, data)
        self.changes += [[f"{table} {each}", place, its_word] for table, each, place in histories]

    def act(self, rng):
        """One change of a row that everybody writes."""
        table = rng.choice(["stock", "stock", "price"])
        key = rng.randint(1, SHARED)
        rows = dict((id, (place, live)) for id, place, live in self.connection.execute(
            "SELECT id, place, live FROM revision WHERE table_name = %s AND id IN (%s, %s) ORDER BY id FOR UPDATE",
            [table, key, -key]).fetchall())
        at = rng.choice([key, -key])
        place, live = rows[at]
        note, qty = f"{'poison' if rng.random() < 0.005 else 'n'} {self.name} {self.count}", rng.randint(0, 99)
        if not live:
            self._execute(f"INSERT INTO {table} VALUES (%s, %s, %s)", [at, note, qty], table, {at: (place + 1, True)})
            self.change([(table, at, place + 1)], "INSERT", at, {"id": at, "note": note, "qty": qty})
        elif (choice := rng.random()) < 0.15:
            self._execute(f"DELETE FROM {table} WHERE id = %s", [at], table, {at: (place + 1, False)})
            self.change([(table, at, place + 1)], "DELETE", at, None)
        elif choice < 0.3 and not rows[-at][1]:
            there = rows[-at][0] + 1
            self._execute(f"UPDATE {table} SET id = -id, note = %s WHERE id = %s", [note, at], table,
                          {at: (place + 1, False), -at: (there, True)})
            self.change([(table, at, place + 1), (table, -at, there)], "UPDATE", at, {"id": -at, "note": note})
        else:
            self._execute(f"UPDATE {table} SET note = %s WHERE id = %s", [note, at], table, {at: (place + 1, True)})
            self.change([(table, at, place + 1)], "UPDATE", at, {"note": note})

    def _execute(self, statement, parameters, table, revisions):
        assert self.connection.execute(statement, parameters).rowcount == 1, statement
        for key, (place, live) in revisions.items():
            self.connection.execute("UPDATE revision SET place = %s, live = %s WHERE table_name = %s AND id = %s",
                                    [place, live, table, key])

    def bulk(self, op, low, high, place, table="ticket"):
        """One statement on rows of the writer's own."""
        statement = {
            "INSERT": f"INSERT INTO {table} SELECT id, %s || id, 0 FROM generate_series(%s::bigint, %s) id",
            "UPDATE": f"UPDATE {table} SET note = %s || id WHERE id BETWEEN %s AND %s",
            "DELETE": f"DELETE FROM {table} WHERE %s <> '' AND id BETWEEN %s AND %s"}[op]
        prefix = f"{self.name} {place} "
        assert self.connection.execute(statement, [prefix, low, high]).rowcount == high - low + 1
        for key in range(low, high + 1):
            note = f"{prefix}{key}"
            data = {"INSERT": {"id": key, "note": note, "qty": 0}, "UPDATE": {"note": note}, "DELETE": None}[op]
            self.change([(table, key, place)], op, key, data)


class Writer:
    """A thread with a session of its own, opened again whenever it is lost; `round` is what it does over and over."""

    def __init__(self, load, name, seed):
        self.load = load
        self.name = name
        self.rng = random.Random(f"{seed} {name}")
        self.number = 0
        self.connection = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.load.ended.is_set():
            try:
                if self.connection is None:
                    self.connection = self.load.connect(f"writer {self.name}")
                self.round()
            except psycopg.Error as error:
                self.load.excuse(self.name, error)
                time.sleep(0.05)
            except Exception as error:
                self.load.findings.append(f"{self.name}: {error!r}")
            if self.connection is not None and self.connection.closed:
                self.connection = None
        if self.connection is not None:
            self.connection.close()

    def vanish(self):
        """The client is gone without a word, as far as the server can see."""
        connection = self.connection
        if connection is not None and not connection.closed:
            try:
                with socket.socket(fileno=os.dup(connection.fileno())) as its:
                    its.shutdown(socket.SHUT_RDWR)
            except (OSError, psycopg.Error):
                pass

    def transaction(self, work, end="commit", synchronous=True, hold=0.0):
        """`work(transaction)` in a transaction of its own, which is written down however it ends; whether it committed."""
        self.number += 1
        name = f"{self.name}.{self.number}"
        connection, transaction = self.connection, Transaction(name, self.connection)
        ended = "rolled back"
        try:
            connection.execute("BEGIN")
            if not synchronous:
                connection.execute("SET LOCAL synchronous_commit = off")
            connection.execute("INSERT INTO witness VALUES (%s)", [name])
            work(transaction)
            if hold:
                time.sleep(hold)
            if end == "rollback":
                connection.execute("ROLLBACK")
            elif end == "prepare":
                ended = "unknown"
                connection.execute(f"PREPARE TRANSACTION '{name}'")
                ended = self.second_phase(name, hold)
            else:
                ended = "unknown"
                connection.execute("COMMIT")
                ended = "committed" if synchronous else "async"
        except psycopg.Error:
            if ended == "unknown" and not connection.closed and end == "commit":
                ended = "rolled back"
            if not connection.closed:
                connection.execute("ROLLBACK")
            raise
        finally:
            self.load.write(name, ended, transaction)
        return ended in ("committed", "async")

    def second_phase(self, name, hold):
        time.sleep(hold)
        if self.rng.random() < 0.3:
            self.connection.execute(f"ROLLBACK PREPARED '{name}'")
            return "rolled back"
        self.connection.execute(f"COMMIT PREPARED '{name}'")
        return "committed"


class Small(Writer):
    """Few changes of rows that everybody writes; some rolled back, some with a part undone, some held back."""

    synchronous = True

    def round(self):
        rng = self.rng
        self.transaction(self.work, "rollback" if rng.random() < 0.1 else "commit", self.synchronous,
                         rng.random() * 0.05 if rng.random() < 0.05 else 0)
        time.sleep(rng.random() * 0.004)

    def work(self, transaction):
        for _ in range(self.rng.randint(1, 4)):
            if self.rng.random() < 0.1:
                self.in_vain(transaction)
            transaction.act(self.rng)

    def in_vain(self, transaction):
        transaction.connection.execute("SAVEPOINT s")
        undone = Transaction(f"{transaction.name}.undone", transaction.connection)
        undone.act(self.rng)
        transaction.connection.execute("ROLLBACK TO s; RELEASE s")
        self.load.write(f"{transaction.name}.undone", "rolled back", undone)


class Hasty(Small):
    """Does not wait until its commits are on disk: a crash may take the last ones, and they must not have been sent."""

    synchronous = False


class TwoPhase(Writer):
    """Prepares, and decides when others have gone past it."""

    def round(self):
        rng = self.rng
        # What a crash or a kill left undecided keeps its rows locked.
        left = self.connection.execute("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE %s", [f"{self.name}.%"])
        for (name,) in left.fetchall():
            self.second_phase(name, 0)
        self.transaction(lambda transaction: [transaction.act(rng) for _ in range(2)], "prepare", hold=rng.random() * 0.1)
        time.sleep(0.1)


class Bulk(Writer):
    """Statements of many rows that nobody else touches: born, changed and gone in transactions of their own."""

    ROWS = 400

    def round(self):
        rng = self.rng
        low = self.load.block(self.ROWS)
        place = 0
        for op in ("INSERT", "UPDATE", "DELETE"):
            kept = self.transaction(lambda transaction: transaction.bulk(op, low, low + self.ROWS - 1, place + 1),
                                    "rollback" if op == "UPDATE" and rng.random() < 0.2 else "commit")
            place += kept
            time.sleep(self.load.pause)


class Load:
    """The writers of a test, their book, and what they met that they should not have."""

    KINDS = {"small": Small, "hasty": Hasty, "phases": TwoPhase, "bulk": Bulk}

    def __init__(self, db, path, seed=0, writers=("small", "small", "hasty", "phases", "bulk"), pause=0.1):
        self.server, self.database = db.server, db.name
        self.book = Book(path)
        self.pause = pause
        self.ended = threading.Event()
        self.findings = []
        self.counted = 0
        self.last = 0
        self.lock = threading.Lock()
        self.writers = [self.KINDS[kind](self, f"{kind}{number}", seed) for number, kind in enumerate(writers)]

    def connect(self, name):
        connection = self.server.connect(self.database, application_name=name, connect_timeout=5)
        connection.execute("SET lock_timeout = '3s'; SET deadlock_timeout = '50ms'; SET client_min_messages = error")
        return connection

    def excuse(self, who, error):
        """Losing the session is part of it, and so is waiting too long; an internal error is not."""
        if error.sqlstate is not None and not isinstance(error, EXPECTED):
            self.findings.append(f"{who}: {error.sqlstate} {error}")

    def write(self, name, ended, transaction):
        with self.lock:
            self.counted += transaction.count
        self.book.write(tx=name, ended=ended, count=transaction.count, changes=transaction.changes)

    def block(self, rows):
        with self.lock:
            self.last += rows
            return self.last - rows + 1

    def start(self):
        for writer in self.writers:
            writer.thread.start()
        return self

    def stop(self):
        """Ends the writers, and decides what they left prepared."""
        self.ended.set()
        for writer in self.writers:
            writer.thread.join(30)
            assert not writer.thread.is_alive(), f"writer {writer.name} hangs"
        with self.server.connect(self.database) as session:
            for number, (name,) in enumerate(session.execute("SELECT gid FROM pg_prepared_xacts ORDER BY 1").fetchall()):
                session.execute(f"{'COMMIT' if number % 2 else 'ROLLBACK'} PREPARED '{name}'")
        self.book.close()

    def closed(self):
        """The writers' book, compared with what the database says it committed."""
        with self.server.connect(self.database) as session:
            return Writers(self.book.path, {name for (name,) in session.execute("SELECT tx FROM witness")})
