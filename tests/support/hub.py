"""A hub in a process of its own: it can be killed, and what it wrote down before it answered is still there.

It listens on two ports, so that a target can move, and misbehaves as `behave` tells it, also while requests are out. Run as a
program it is the process, else the handle to it."""

import contextlib
import functools
import gzip
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid

import psycopg

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from support import behaviours
from support.books import Book, content, word
from support.receiver import Receiver, Wire
from support.wait import wait_for

PORTS = 2
# Of these tables nobody knows beforehand what will arrive: only what comes of it is compared.
UNFORESEEN = {"t", "bait"}
# Nothing is taken by a hub that behaves so.
TAKES_NOTHING = {"status", "html", "broken json", "nothing mentioned", "vanish", "silent", "reset after reading", "drip",
                 "half close", "gzip bomb", "long error"}


class HubProcess:
    """The handle: starts and kills the process, and tells it what to do. It listens at an address, and goes by a name.

    With `database`, a DSN, it takes what sync_outbox_apply_text() has acknowledged there, and nothing else."""

    def __init__(self, directory, listen="127.0.0.1", name=None, database=None):
        self.directory = directory
        if database:
            replace(directory / "database", database)
        self.listen = listen
        self.name = name or listen
        self.book = directory / "hub.book"
        self.process = None
        self.behave()
        self.start()

    def start(self):
        ready = self.directory / "ports.ready"
        ready.unlink(missing_ok=True)
        self.process = subprocess.Popen([sys.executable, __file__, str(self.directory), self.listen], start_new_session=True)
        wait_for(ready.exists, 20, "a hub that listens")
        self.ports = json.loads((self.directory / "ports").read_text())
        return self

    def kill9(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill9()

    @property
    def urls(self):
        return [f"http://{self.name}:{port}" for port in self.ports]

    @property
    def url(self):
        return self.urls[0]

    def behave(self, how="ack", token=None, **more):
        """How it treats requests from now on, see Behaviour; `token` None: any is good."""
        replace(self.directory / "mode", {"how": how, "token": token, **more})

    def requests(self):
        """Whole requests that have arrived so far."""
        return [entry for entry in Book.read(self.book) if "request" in entry] if self.book.exists() else []


def replace(path, value):
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value))
    new.rename(path)


@functools.cache
def bomb():
    """Large enough to hurt whoever unpacks it."""
    return gzip.compress(b" " * 50_000_000)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def chosen(key, share=2):
    """One key in so many, the same ones every time: a key is taken or left as a whole, so that its order holds."""
    return int(hashlib.blake2b(key.encode(), digest_size=2).hexdigest(), 16) % share == 0


def keys(change):
    """The keys whose histories a change belongs to."""
    before = f"{change['table']} {change['pk']['id']}"
    after = f"{change['table']} {(change['data'] or {}).get('id', change['pk']['id'])}"
    return [before] if before == after else [before, after]


class Listener(Receiver):
    """A receiver that also breaks off before a request has been read."""

    def __init__(self, behaviour, mode, host, port):
        self.mode = mode
        super().__init__(behaviour, host=host, port=port)

    def _requests(self, connection, number):
        mode = self.mode()
        how, wire = mode["how"], Wire(connection)
        if how.startswith("reset before"):
            # After so many bytes of the request: none, a part of the head, a part of the body.
            if mode.get("read"):
                connection.recv(mode["read"])
            wire.reset()
        elif how == "early status":
            # Answered and closed with the body unread, which makes a reset of it.
            connection.recv(300)
            wire.answer(mode["status"], "not like this", {"Connection": "close"})
        elif how == "early silence":
            time.sleep(30)
        else:
            super()._requests(connection, number)


class Hub:
    """The process: what it does with a whole request."""

    def __init__(self, directory, host):
        self.directory = directory
        self.book = Book(directory / "hub.book")
        self.lock = threading.Lock()
        its = directory / "database"
        self.database = Applier(json.loads(its.read_text()), self.book) if its.exists() else None
        known = directory / "ports"
        ports = json.loads(known.read_text()) if known.exists() else [0] * PORTS
        self.listeners = [Listener(self, self.mode, host, port) for port in ports]
        replace(known, [listener.port for listener in self.listeners])
        (directory / "ports.ready").touch()

    def mode(self):
        return json.loads((self.directory / "mode").read_text())

    def run(self):
        """Until killed, or the starter is gone; while it is to be away, nothing listens."""
        parent = os.getppid()
        while os.getppid() == parent:
            away = self.mode()["how"] == "refused"
            for listener in self.listeners:
                if away:
                    listener.stop()
                elif listener.listener is None:
                    listener.start()
            time.sleep(0.05)

    def __call__(self, request, wire):
        mode = self.mode()
        how = mode["how"]
        if how == "die before it is written":
            die()
        changes = request.changes
        request.raw = None
        request.port = wire.connection.getsockname()[1]
        if mode["token"] and request.headers.get("authorization") != f"Bearer {mode['token']}":
            self.enter(request, changes, [])
            return wire.answer(401, {"error": "unauthorized"})
        taken, errors, conflicts = self.judge(changes, how)
        # On a connection that was kept there is no more breaking off before the request has been read.
        if how == "refused" or how.startswith(("reset before", "early")):
            how = "reset after reading"
        if how in TAKES_NOTHING:
            taken = []
        if how == "poison" and any(poisonous(change) for change in changes):
            self.enter(request, changes, [])
            return wire.answer(422, {"error": "there is something in it"})
        # One after the other: the book has the order in which the database took them.
        with self.lock:
            if self.database and taken:
                applied = self.database.apply(changes, taken)
                if applied is None:
                    self.enter(request, changes, [], locked=True)
                    return wire.answer(503, "no database")
                taken = [dedup_key for dedup_key in taken if dedup_key in applied]
            name = self.enter(request, changes, taken, locked=True)
        answer = {"acked": taken, "errors": errors, "conflicts": conflicts}
        if how in ("ack", "half", "refuse", "conflict", "poison", "ack in time"):
            time.sleep(mode.get("delay", 0))
            wire.answer(200, answer)
        elif how == "ack in pieces":
            wire.answer(200, answer, size=100)
        elif how == "strange acks":
            foreign = [str(uuid.uuid4()) for _ in range(3)]
            acked = foreign + taken + taken[:5] + foreign[:1]
            wire.answer(200, {"acked": acked, "errors": [], "conflicts": foreign[1:], "more": {}})
        elif how == "status":
            return wire.answer(mode["status"], "no", mode.get("headers"))
        elif how == "html":
            return behaviours.html(request, wire)
        elif how == "broken json":
            return behaviours.broken_json(request, wire)
        elif how == "nothing mentioned":
            return wire.answer(200, {"acked": [], "errors": [], "conflicts": []})
        elif how in ("vanish", "take and vanish"):
            return wire.close()
        elif how in ("half close", "take and half close"):
            wire.connection.shutdown(socket.SHUT_WR)
            wire.connection.recv(1)  # until the sender has left as well
            return wire.close()
        elif how == "wrong length":
            wire.answer(200, answer, {"Content-Length": str(len(json.dumps(answer)) + mode["off"]), "Connection": "close"})
            return wire.close()
        elif how == "header flood":
            return wire.answer(200, answer, {f"X-Flood-{number}": "flood" for number in range(10_000)})
        elif how == "gzip bomb":
            return wire.answer(200, bomb(), {"Content-Encoding": "gzip"})
        elif how == "long error":
            return wire.answer(500, "\x1b[31m\x00\r\n" * 1_300_000)
        elif how == "take and never end":
            return behaviours.endless(request, wire)
        elif how in ("silent", "take and be silent"):
            return time.sleep(30)
        elif how in ("reset after reading", "take and reset"):
            return wire.reset()
        elif how in ("drip", "take and drip"):
            return behaviours.drip(0.1)(request, wire)
        elif how == "die after it is written":
            die()
        elif how in ("reset in the answer", "die in the answer"):
            text = json.dumps(answer)
            wire.send(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode())
            wire.send(text[:len(text) // 2].encode())
            return die() if how == "die in the answer" else wire.reset()
        elif how == "reset after the answer":
            wire.answer(200, answer)
            return wire.reset()  # may overtake the answer
        else:
            raise AssertionError(f"unknown behaviour {how}")
        self.book.write(answered=name, t=time.time())

    def judge(self, changes, how):
        """(taken, errors, conflicts): a key stops at its first change that is not taken, as the wire says."""
        stopped, taken, errors, conflicts = set(), [], [], []
        for change in changes:
            its_keys, dedup_key = keys(change), change["dedup_key"]
            if not stopped.isdisjoint(its_keys):
                pass
            elif how == "half" and not chosen(its_keys[0]):
                pass
            elif how == "refuse" and (poisonous(change) or chosen(its_keys[0], 50)):
                errors.append({"dedup_key": dedup_key, "error": "not now"})
            elif how == "conflict" and chosen(its_keys[0], 50):
                conflicts.append(dedup_key)
            else:
                taken.append(dedup_key)
                continue
            stopped.update(its_keys)
        return taken, errors, conflicts

    def enter(self, request, changes, taken, locked=False):
        """Writes the request down; only after this is anything answered."""
        name, taken = uuid.uuid4().hex, set(taken)
        lines = [[change["dedup_key"], content(change), change["dedup_key"] in taken,
                  [] if change["table"] in UNFORESEEN else keys(change),
                  word(change["op"], change["pk"], change["data"])] for change in changes]
        with contextlib.nullcontext() if locked else self.lock:
            self.book.write(request=name, t=time.time(), began=request.began, port=request.port,
                            tables=sorted({change["table"] for change in changes}),
                            batch=request.headers.get("idempotency-key"), changes=lines)
        return name


class Applier:
    """The database behind a hub, which may be stopped and started at any time."""

    def __init__(self, dsn, book):
        self.dsn = dsn
        self.book = book
        self.connection = None

    def apply(self, changes, wanted):
        """The keys of `wanted` that are in the database for good; None if it does not answer."""
        wanted = set(wanted)
        body = json.dumps({"changes": [change for change in changes if change["dedup_key"] in wanted]})
        try:
            if self.connection is None or self.connection.closed:
                self.connection = psycopg.connect(self.dsn, autocommit=True, connect_timeout=1)
                self.connection.execute("SET client_min_messages = error")
                self.before = self.state()
            answer = self.connection.execute("SELECT sync_outbox_apply_text(%s)", [body]).fetchone()[0]
            after = self.state()
        except psycopg.OperationalError:
            if self.connection is not None:
                self.connection.close()
            return None
        except psycopg.Error as error:
            self.book.write(trouble=f"apply: {error.sqlstate} {error}")
            return None
        if after != self.before:
            self.book.write(trouble=f"apply left {after}, it was {self.before}")
        for what in (*answer["errors"], *answer["conflicts"]):
            self.book.write(trouble=f"apply does not take {what}")
        return set(answer["acked"])

    def state(self):
        """What code of a table's owner could leave behind in the session."""
        return list(self.connection.execute(
            "SELECT current_user::text, session_user::text, current_setting('search_path'), current_setting('synchronous_commit'),"
            " current_setting('statement_timeout'), coalesce(current_setting('evil.mine', true), ''),"
            " (SELECT count(*) FROM pg_class WHERE relpersistence = 't')").fetchone())


def poisonous(change):
    return str((change["data"] or {}).get("note", "")).startswith("poison")


if __name__ == "__main__":
    import pathlib
    Hub(pathlib.Path(sys.argv[1]), sys.argv[2]).run()
