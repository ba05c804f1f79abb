"""What the soak has beside the load of the fault tests: a database behind the hub, tables of other kinds, and an owner who wants more."""

import random
from collections import Counter

import psycopg

from .. import nests
from ..database import TOKEN
from ..load import Load, Writer

# By table: its priority and its target. Rows of these are written by one writer at a time.
OWN = {"crate": ("NORMAL", "default"), "express": ("HIGH", "default"), "parcel": ("NORMAL", "other")}
SCHEMA = "".join(f"CREATE TABLE {table} (id bigint PRIMARY KEY, note text, qty int);" for table in OWN)
RECEIPT = "CREATE TABLE receipt (id bigserial PRIMARY KEY, note text, qty int);"
TABLES = ("stock", "price", "ticket", "t", "receipt", "evil.bait", *OWN)
ROLE = "soak_mallory"


class Nested(Writer):
    """Statements inside statements, on a table of its own; what arrives is anybody's guess, what comes of it is not."""

    def round(self):
        try:
            nests.Nest(random.Random(self.rng.random())).run(Plain(self.connection))
        except psycopg.errors.FeatureNotSupported:
            pass  # a MERGE in a WITH: this nest has no sense
        finally:
            if not self.connection.closed:
                self.connection.execute("ROLLBACK")
        self.load.ended.wait(0.05)


class Plain:
    """As much of a database as a nest needs."""

    def __init__(self, connection):
        self.conn = connection

    def run(self, query):
        self.conn.execute(query)


class Counted(Writer):
    """An application that asks for the number it has just been given."""

    def round(self):
        self.transaction(self.work, "rollback" if self.rng.random() < 0.1 else "commit")
        self.load.ended.wait(0.02)

    def work(self, transaction):
        for _ in range(self.rng.randint(1, 3)):
            note = f"{transaction.name} {transaction.count}"
            execute = transaction.connection.execute
            inserted = execute("INSERT INTO receipt (note, qty) VALUES (%s, 0) RETURNING id", [note])
            (key,) = inserted.fetchone()
            asked = execute("SELECT lastval(), currval('receipt_id_seq')").fetchone()
            if asked != (key, key) or inserted.rowcount != 1:
                self.load.findings.append(f"the application inserted {key} and was told {asked}, {inserted.rowcount} rows")
            transaction.change([("receipt", key, 1)], "INSERT", key, {"id": key, "note": note, "qty": 0})


Load.KINDS.update(nested=Nested, counted=Counted)
WRITERS = ("small", "small", "hasty", "phases", "bulk", "nested", "counted")

# All that he owns calls this: he notes who runs it, wants to be superuser, and leaves something behind.
EVIL = """
    CREATE SCHEMA evil; CREATE TABLE evil.bait (id bigint PRIMARY KEY, note text); CREATE TABLE evil.who (who text);
    GRANT USAGE ON SCHEMA evil TO PUBLIC; GRANT INSERT ON evil.who TO PUBLIC;
    CREATE FUNCTION evil.spoil() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO evil.who SELECT current_user::text WHERE current_user <> 'MALLORY';
        BEGIN EXECUTE 'ALTER ROLE MALLORY SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
        BEGIN EXECUTE 'CREATE TEMP TABLE sync_outbox_accepted (relation regclass)'; EXCEPTION WHEN OTHERS THEN NULL; END;
        BEGIN EXECUTE 'CREATE OPERATOR pg_temp.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.o)'; EXCEPTION WHEN OTHERS THEN NULL; END;
        PERFORM pg_catalog.set_config('search_path', 'evil, pg_catalog', false), pg_catalog.set_config('statement_timeout', '1', false),
            pg_catalog.set_config('synchronous_commit', 'off', false), pg_catalog.set_config('evil.mine', 'left', false);
    END $$;
    CREATE FUNCTION evil.o(oid, oid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.spoil(); RETURN true; END $$;
    CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.o);
    CREATE TYPE evil.mood AS ENUM ('sad', 'happy');
    CREATE FUNCTION evil.mood_json(evil.mood) RETURNS json LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN PERFORM evil.spoil(); RETURN pg_catalog.to_json($1::text); END $$;
    CREATE CAST (evil.mood AS json) WITH FUNCTION evil.mood_json(evil.mood);
    ALTER TABLE evil.bait ADD mood evil.mood;
    CREATE FUNCTION evil.trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.spoil(); RETURN NEW; END $$;
    CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.trigger();
    ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER spoil;
""".replace("MALLORY", ROLE)


class More:
    def __init__(self, server):
        self.server = server
        self.position = server.log.position()
        self.db = server.create_database()
        self.db.run("SET client_min_messages = warning; SET synchronous_commit = on; CREATE EXTENSION sync_outbox;"
                    + "".join(f"CREATE TABLE {table} (id bigint PRIMARY KEY, note text, qty int);"
                              for table in ("stock", "price", "ticket", "receipt", *OWN))
                    + "CREATE TABLE t (id int PRIMARY KEY, v int, w text)")
        self._evil(self.server, self.db.name, "SELECT sync_outbox_accept('evil.bait')")
        for table in TABLES:
            if table != "evil.bait":
                self.db.run("SELECT sync_outbox_accept(%s::regclass)", [table])
        self.db.close()
        # Keys and dedup_keys whose requests the timed uses ask for.
        self.watched = set()

    @property
    def dsn(self):
        return self.server.dsn(self.db.name)

    def _evil(self, server, database, last):
        with server.connect(database) as admin:
            admin.execute(f"CREATE ROLE {ROLE} LOGIN; GRANT sync_outbox_admin TO {ROLE}; GRANT CREATE ON DATABASE {database} TO {ROLE}")
        with server.connect(database, ROLE) as session:
            session.execute("SET client_min_messages = error")
            session.execute(EVIL)
            session.execute(last)

    def prepare(self, stand):
        db = stand.db
        db.run(SCHEMA + RECEIPT)
        db.run("SELECT sync_outbox_target_set('other', json_build_object('base_url', %s::text))", [stand.hub.url])
        db.run("SELECT sync_outbox_set_token(%s, 'other')", [TOKEN])
        for table, (priority, target) in OWN.items():
            db.attach(table, priority=priority, target=target)
        db.attach("receipt")
        nests.prepare(db, "plain")
        self._evil(stand.server, db.name, "SELECT sync_outbox_attach('evil.bait')")

    def restore(self, stand):
        stand.run("SELECT sync_outbox_resume('other')")

    def differing(self, stand):
        """Rows of the store that the hub lacks, and the other way round, each as often as it is too many."""
        found = []
        with stand.session() as here, psycopg.connect(self.dsn) as there:
            for table in TABLES:
                store, hub = (Counter(session.execute(f"SELECT t::text FROM {table} t").fetchall()) for session in (here, there))
                found += [f"{table}: only in the store: {row}" for (row,) in (store - hub).elements()]
                found += [f"{table}: only in the hub: {row}" for (row,) in (hub - store).elements()]
            for name, session in (("store", here), ("hub", there)):
                (super_user,) = session.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone()
                if super_user:
                    stand.findings.append(f"{ROLE} has become superuser on the {name}")
                if ran := session.execute("SELECT DISTINCT who FROM evil.who").fetchall():
                    stand.findings.append(f"code of {ROLE} ran as {ran} on the {name}")
            self.rows = sum(here.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES)
        return found
