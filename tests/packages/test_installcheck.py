"""make installcheck, typed by a DBA: on a server that is well it says line by line what it checked and leaves nothing;
where something is broken it fails and says in a sentence what."""

import contextlib
import os
import pathlib
import re
import subprocess

import pytest

from support import prefix
from support.document import Document
from support.run import Run
from support.server import Server

CHECKED = [
    "the extension is installed on this server: 0.2.0", "CREATE EXTENSION", "a table is attached",
    "INSERT is captured", "UPDATE is captured", "DELETE is captured", "TRUNCATE is captured", "a change that is rolled back leaves nothing",
    "a flush to a port at which nobody listens answers offline", "and loses nothing", "what failed can be requeued", "a detached table is not captured any more", "what waits can be given up",
    "the target can be dropped", "DROP EXTENSION leaves nothing",
]


def installcheck(server, **environment):
    """Its exit status and what it says. No Python, no cargo: PATH has psql and the system's programs alone."""
    environment = {"PATH": f"{server.run.bindir}:/usr/bin:/bin", "PGHOST": str(server.sockets), "PGUSER": "postgres", **environment}
    done = subprocess.run(["make", "-s", "-C", prefix.PROJECT, "installcheck"], env=environment, text=True, capture_output=True)
    return done.returncode, done.stdout + done.stderr


def left(server):
    """What there is on a server that the check could have left."""
    with server.connect() as session:
        databases = [name for name, in session.execute("SELECT datname FROM pg_database ORDER BY 1")]
        roles = [name for name, in session.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'sync%' ORDER BY 1")]
    tokens = server.data / "sync_outbox"
    return databases, roles, os.listdir(tokens) if tokens.exists() else []


@pytest.mark.parametrize("preload", [True, False])
def test_a_server_that_is_well(new_server, preload):
    server = new_server(preload=preload)
    before = left(server)
    status, said = installcheck(server)

    assert status == 0, said
    preloaded = "the library is preloaded: a background worker sends"
    checked = re.findall(r"^ok    (.*)$", said, re.M)
    assert checked[0].startswith("the server answers: PostgreSQL ")
    assert re.search("version 0.2.0$", checked[3])
    assert [line for line in checked[1:3] + checked[4:] if line != preloaded] == CHECKED
    assert (preloaded in checked) == preload
    assert re.search(rf"^installcheck: {len(checked)} checks passed in \d+ s$", said, re.M)
    assert left(server) == before


def test_the_roles_of_a_server_in_use_stay(new_server):
    server = new_server(preload=True)
    database = server.create_database()
    database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    before = left(server)
    status, said = installcheck(server)

    assert (status, left(server)) == (0, before), said
    database.close()


def test_a_server_and_a_role_with_settings_of_their_own(new_server):
    """The settings of a server, its target above all, are neither used nor in the way."""
    server = new_server(preload=True, settings={"sync_outbox.base_url": "https://hub.example.org"})
    with server.connect() as session:
        session.execute("ALTER ROLE postgres SET search_path = nowhere")
        session.execute("ALTER ROLE postgres SET default_transaction_isolation = serializable")
    status, said = installcheck(server)

    assert status == 0, said
    assert not server.log.matches("hub.example.org")


def test_it_needs_a_superuser(new_server):
    server = new_server()
    with server.connect() as session:
        session.execute("CREATE ROLE plain LOGIN CREATEDB")
    status, said = installcheck(server, PGUSER="plain")

    assert status != 0 and "CREATE EXTENSION needs a superuser" in said


def test_no_server(new_server, tmp_path):
    server = new_server()
    status, said = installcheck(server, PGHOST=str(tmp_path))

    assert status != 0 and "FAIL  the server answers" in said and "PGHOST" in said


def test_the_document_shows_what_it_says(new_server):
    (block,) = [block for block in Document("docs/operations.md").below("Checking an installation") if block.language == "text"]

    def same(text):
        """Without what differs from server to server."""
        text = re.sub(r"PostgreSQL .*", "PostgreSQL ..", re.sub(r"in \d+ s", "in .. s", text.strip()))
        return re.sub(r"the library works with SQL of version|library and SQL are both of version", "the versions match:", text)

    assert same(installcheck(new_server(preload=True))[1]) == same(block.text)


# Broken installations

@pytest.fixture
def broken(run, worker_name):
    """Makes a server of an installation of its own, which `spoil` has damaged."""
    with contextlib.ExitStack() as stack:
        def make(spoil):
            place = run.directory(f"broken_{worker_name}_{broken.count}")
            place.chmod(0o755)
            programs = f"bindir_{place.name}"
            broken.count += 1
            bindir = prefix.build(place)
            (run.where / programs).symlink_to(bindir)
            spoiled = Run(run.where, programs)
            stack.callback(spoiled.close)
            spoil(*(pathlib.Path(spoiled.call("pg_config", f"--{name}").strip()) for name in ("pkglibdir", "sharedir")))
            return Server(spoiled, f"{place.name}_server").start()
        yield make


broken.count = 0


def no_control_file(libraries, shared):
    (shared / "extension/sync_outbox.control").unlink()


def no_library(libraries, shared):
    (libraries / "sync_outbox.so").unlink()


def no_library_at_all(libraries, shared):
    (libraries / "sync_outbox.so").write_text("not a library")


def a_trigger_that_captures_nothing(libraries, shared):
    script = shared / "extension/sync_outbox--0.2.0.sql"
    text = script.read_text("utf-8")
    start = text.index("CREATE FUNCTION @extschema@.sync_outbox_capture()")
    end = text.index(";", start)
    script.write_text(text[:start] + "CREATE FUNCTION @extschema@.sync_outbox_capture() RETURNS trigger LANGUAGE plpgsql"
                      " AS 'BEGIN RETURN NULL; END'" + text[end:], "utf-8")


@pytest.mark.parametrize("spoil, sentence", [
    (no_control_file, "It is not: the server has no sync_outbox.control. Install the package"),
    (no_library, "The server could not load the extension"),
    (no_library_at_all, "The server could not load the extension"),
    (a_trigger_that_captures_nothing, "FAIL  INSERT is captured"),
], ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_installation(broken, spoil, sentence):
    server = broken(spoil)
    before = left(server)
    status, said = installcheck(server)

    assert status != 0 and sentence in said
    assert re.search(r"^installcheck: \d+ of \d+ checks failed$", said, re.M)
    assert left(server) == before
