"""A throwaway PostgreSQL server of the private prefix."""

import os
import re
import signal
import subprocess

import psycopg
from psycopg import sql

from .database import Database
from .run import environment
from .wait import wait_for

FAST = {
    "fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "max_connections": "40",
    "max_wal_size": "256MB", "autovacuum_naptime": "1min", "max_worker_processes": "16",
    "max_prepared_transactions": "10", "log_line_prefix": "%m [%p] %b %d ", "log_error_verbosity": "default",
}

# A test fails when its server says one of these, whatever else the test saw.
ALARMING = re.compile(
    r"PANIC:|TRAP:|was terminated by signal|panicked at|\bleak(ed|s)?\b|WARNING:.*\breference\b|could not find block"
    r"|don't own a lock")


class Server:
    """A data directory with its own socket directory and log; nothing of it listens on TCP.

    `preload` names sync_outbox in shared_preload_libraries; `env` is added to the postmaster's environment; `data` is a
    data directory made otherwise (a base backup), by default a copy of the run's template; `within` and `through` are
    commands that run the postmaster, see Run.command."""

    def __init__(self, run, name, preload=False, settings=None, env=None, data=None, within=(), through=()):
        self.run = run
        self.name = name
        self.env = env or {}
        self.within = within
        self.through = through
        self.sockets = run.directory(f"{name}.s")
        self.data = data or run.clone_template(name)
        preloaded = {"shared_preload_libraries": "sync_outbox"} if preload else {}
        self.write_settings({**FAST, **preloaded, **(settings or {})})
        self.changed = set()
        self.databases = 0
        self.process = None
        self.log = Log(run.where / f"{name}.log")
        run.started.callback(self.stop, "immediate")

    # Life

    def start(self, *options):
        # Where it listens stands on the command line: a copy of the data directory must not carry it.
        place = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.sockets}"]
        with open(self.log.path, "ab") as log:
            self.process = subprocess.Popen(
                self.run.command("postgres", "-D", self.data, *place, *options, within=self.within, through=self.through),
                env={**environment(), **self.env}, cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.wait_until_ready()
        return self

    def wait_until_ready(self, deadline=30):
        """Until connections are accepted: the postmaster writes so into its pid file."""
        def ready():
            assert self.process.poll() is None, f"the server ended while starting:\n{self.log.since(0)[-4000:]}"
            try:
                lines = (self.data / "postmaster.pid").read_text().splitlines()
            except FileNotFoundError:
                return False
            return len(lines) > 7 and lines[0] == str(self.process.pid) and lines[7].strip() in ("ready", "standby")
        wait_for(ready, deadline, f"{self.name} ready")

    def stop(self, mode="fast", deadline=30):
        if self.process is None:
            return
        wanted = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        self.process.send_signal(wanted)
        try:
            self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise AssertionError(f"{self.name} did not stop within {deadline} s ({mode}):\n{self.log.since(0)[-4000:]}")
        self.process = None

    def restart(self, mode="fast"):
        self.stop(mode)
        self.start()

    def kill9(self):
        """Kills the postmaster alone, as the kernel does when memory is short."""
        self.process.kill()
        self.process.wait()
        self.process = None

    # Settings

    def write_settings(self, settings):
        """Appends to postgresql.conf; what stands later in the file counts."""
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def set(self, **values):
        """ALTER SYSTEM and reload; a value of None resets. `sync_outbox__x` stands for `sync_outbox.x`."""
        with self.connect() as admin:
            # Without it ALTER SYSTEM does not know the names.
            admin.execute("LOAD 'sync_outbox'")
            for name, value in values.items():
                name = name.replace("__", ".")
                command = "ALTER SYSTEM RESET {}" if value is None else "ALTER SYSTEM SET {} = {}"
                admin.execute(sql.SQL(command).format(sql.SQL(name), sql.Literal(str(value))))
                self.changed.add(name)
        self.reload()

    def reset_settings(self):
        """Undoes every `set`."""
        if self.changed:
            self.set(**{name: None for name in self.changed})
            self.changed.clear()

    def reload(self):
        """Reloads the configuration and waits until new sessions have it."""
        before = self.value("SELECT pg_conf_load_time()")
        self.value("SELECT pg_reload_conf()")
        wait_for(lambda: self.value("SELECT pg_conf_load_time()") > before, what="configuration reloaded")

    # Connections

    def dsn(self, dbname="postgres", user="postgres"):
        return f"host={self.sockets} dbname={dbname} user={user}"

    def connect(self, dbname="postgres", user="postgres", autocommit=True, **options):
        return psycopg.connect(self.dsn(dbname, user), autocommit=autocommit, **options)

    def value(self, query, dbname="postgres"):
        """The single value of a query in a session of its own."""
        with self.connect(dbname) as session:
            return session.execute(query).fetchone()[0]

    def create_database(self, options="", name=None):
        """A new empty database, wrapped."""
        self.databases += 1
        name = name or f"{self.name}_{self.databases}"
        with self.connect() as admin:
            admin.execute(f"CREATE DATABASE {name} {options}")
        return Database(self, name)

    def drop_database(self, name):
        with self.connect() as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class Log:
    """The server's log, read from a position."""

    def __init__(self, path):
        self.path = path
        path.touch()

    def position(self):
        return os.path.getsize(self.path)

    def since(self, position):
        with open(self.path, encoding="utf-8", errors="replace") as log:
            log.seek(position)
            return log.read()

    def matches(self, pattern, position=0):
        """The lines that match a regular expression."""
        return [line for line in self.since(position).splitlines() if re.search(pattern, line)]

    def alarming(self, position=0, expected=()):
        """The lines that no test may leave, but for those that match an expected pattern."""
        return [line for line in self.since(position).splitlines()
                if ALARMING.search(line) and not any(re.search(pattern, line) for pattern in expected)]
