"""PostgreSQL 18 finds the extension in a directory of its own, as a volume of an image is mounted, through the two settings
that docs/operations.md shows; the server's own tree is left alone."""

import re
import subprocess

import pytest

from support import prefix
from support.document import Document
from support.run import Run
from support.server import Server
from support.wait import wait_for

SECTION = "A directory of its own"
FILES = ["lib/sync_outbox.so", "share/extension/sync_outbox--0.1.0--0.2.0.sql", "share/extension/sync_outbox--0.1.0.sql",
         "share/extension/sync_outbox--0.2.0.sql", "share/extension/sync_outbox.control"]


def install(target, where):
    subprocess.run(["make", "-s", "-C", prefix.PROJECT, target, f"prefix={where}"], check=True, capture_output=True)
    return sorted(str(path.relative_to(where)) for path in where.rglob("*") if path.is_file())


def shown_settings():
    """The settings that the document shows, and the directory that they name."""
    (block,) = [block for block in Document("docs/operations.md").below(SECTION) if block.language == "conf"]
    settings = dict(re.findall(r"^(\w+) = '(.*)'$", block.text, re.M))
    return settings, re.fullmatch(r"(.*)/lib:\$libdir", settings["dynamic_library_path"])[1]


def test_it_has_two_folders(tmp_path):
    where = tmp_path / "sync_outbox"
    assert install("install-files", where) == FILES
    assert install("uninstall", where) == []


def test_a_variable_of_the_environment_is_not_meant(run, tmp_path):
    shown = subprocess.run(["make", "-n", "-C", prefix.PROJECT, "install-files", f"PG_CONFIG={run.bindir / 'pg_config'}"],
                           env={"PATH": "/usr/bin:/bin", "prefix": str(tmp_path)}, check=True, capture_output=True, text=True).stdout
    assert str(tmp_path) not in shown


@pytest.fixture
def bare(run, worker_name):
    """A server of 18 or later whose own tree has nothing of the extension."""
    version = run.call("postgres", "--version")
    if int(re.search(r"\d+", version)[0]) < 18:
        pytest.skip("extension_control_path is there since PostgreSQL 18")
    programs = f"bindir_bare_{worker_name}"
    place = run.directory(f"bare_{worker_name}")
    place.chmod(0o755)
    (run.where / programs).symlink_to(prefix.copy(prefix.default_pg_config(), place))
    bare = Run(run.where, programs)
    yield bare
    bare.close()


@pytest.mark.parametrize("preload", [True, False])
def test_18_finds_it_there(bare, worker_name, receiver, tmp_path, preload):
    where = bare.where / f"volume_{worker_name}_{preload}"
    where.mkdir(mode=0o755)
    install("install-files", where)
    settings, named = shown_settings()
    settings = {name: value.replace(named, str(where)) for name, value in settings.items()}
    if not preload:
        del settings["shared_preload_libraries"]
    server = Server(bare, f"volume_server_{worker_name}_{preload}", settings=settings).start()
    database = server.create_database()
    database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    database.aim(receiver)
    database.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    database.attach("sales")
    database.run("INSERT INTO sales VALUES (1, 1), (2, 2)")
    if preload:
        wait_for(lambda: database.outbox() == [], what="the worker has sent")
    else:
        assert database.flush() == '{"ok": true, "pending": 2, "sent": 2, "acked": 2}'

    assert [change["pk"] for change in receiver.changes] == [{"id": 1}, {"id": 2}]
    checked = subprocess.run(["make", "-s", "-C", prefix.PROJECT, "installcheck"], text=True, capture_output=True,
                             env={"PATH": f"{bare.bindir}:/usr/bin:/bin", "PGHOST": str(server.sockets), "PGUSER": "postgres"})
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert list((bare.where / f"bare_{worker_name}").rglob("sync_outbox*")) == []
    database.close()
    server.stop()
