"""A database of a test: short ways to say what tests say all the time."""

import json

from psycopg.rows import namedtuple_row

from .wait import wait_for

TOKEN = "t0ken"


class Database:
    """One session by default (`conn`, autocommit); `session()` opens further ones, all closed with the database."""

    def __init__(self, server, name):
        self.server = server
        self.name = name
        self.sessions = []
        self.conn = self.session()

    def session(self, user="postgres", autocommit=True, **options):
        session = self.server.connect(self.name, user, autocommit, row_factory=namedtuple_row, **options)
        self.sessions.append(session)
        return session

    def close(self):
        for session in self.sessions:
            session.close()

    def role(self, name, *member_of):
        """A role that can log in, its name made unique: roles belong to the whole server."""
        role = f"{self.name}_{name}"
        self.run(f"CREATE ROLE {role} LOGIN")
        for group in member_of:
            self.run(f"GRANT {group} TO {role}")
        return role

    # Statements

    def run(self, query, parameters=None):
        self.conn.execute(query, parameters)

    def rows(self, query, parameters=None):
        return self.conn.execute(query, parameters).fetchall()

    def row(self, query, parameters=None):
        (row,) = self.rows(query, parameters)
        return row

    def value(self, query, parameters=None):
        return self.row(query, parameters)[0]

    def create_extension(self, *names):
        """Of those that not every server has."""
        for name in names:
            self.server.run.require(name)
            self.run(f"CREATE EXTENSION {name}")

    def wait_until_blocked(self, session):
        """Until that session waits for a lock that another one holds."""
        with self.server.connect(self.name) as watching:
            wait_for(lambda: watching.execute("SELECT pg_blocking_pids(%s) <> '{}'",
                                              [session.info.backend_pid]).fetchone()[0],
                     what="a session that waits for a lock")

    # The extension

    def configure(self, **members):
        """sync_outbox_configure() with these members; returns its answer."""
        return self.value("SELECT sync_outbox_configure(%s::json)", [json.dumps(members)])

    def aim(self, receiver):
        """Points the default target at a receiver."""
        return self.configure(webapp_base_url=receiver.url, sync_upload_token=TOKEN)

    def attach(self, relation, **options):
        named = "".join(f", {name} => %({name})s" for name in options)
        self.run(f"SELECT sync_outbox_attach(%(relation)s{named})", {"relation": relation, **options})

    def alter_outbox(self):
        """Makes an outbox that capture can no longer append to directly, so that it writes by INSERT.

        The default is volatile: of a row that was appended as if the column were not there, it would be NULL."""
        self.run("ALTER TABLE sync_outbox ADD inserted_at timestamptz DEFAULT clock_timestamp()")
        return self

    def flush(self, **arguments):
        """The answer of sync_outbox_flush() as text: its exact form is part of the contract."""
        named = ", ".join(f"{name} => %({name})s" for name in arguments)
        return self.value(f"SELECT sync_outbox_flush({named})::text", arguments)

    def flushed(self, **arguments):
        """The answer as a dict, where its exact form is not the point."""
        return json.loads(self.flush(**arguments))

    def outbox(self, where="true"):
        """The changes in capture order, JSON parsed."""
        return self.rows(f"SELECT * FROM sync_outbox WHERE {where} ORDER BY id")

    def changes(self):
        """(op, pk, data) in capture order."""
        return [(change.op, change.pk, change.data) for change in self.outbox()]

    def keys(self, where="true"):
        """The dedup_keys in capture order."""
        return [str(change.dedup_key) for change in self.outbox(where)]
