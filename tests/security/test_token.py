"""Tokens: where they come from, where they go, and where they must never be seen."""

import json
import os

import pytest
from psycopg import errors, sql

from support.behaviours import require_token
from support.copies import kept
from support.run import own
from support.wait import wait_for

CANARY = "c4n4ry-0f-a-t0ken"


def sent_token(receiver):
    """The token of the last request, which comes twice."""
    headers = receiver.requests[-1].headers
    assert headers["authorization"] == f"Bearer {headers['x-upload-token']}"
    return headers["x-upload-token"]


@pytest.fixture
def queue(db, receiver):
    """A change that waits; the target has a URL and no token."""
    db.run("CREATE TABLE sales (id int PRIMARY KEY)")
    db.attach("sales")
    db.run("INSERT INTO sales VALUES (1)")
    db.configure(webapp_base_url=receiver.url)
    return db


@pytest.fixture
def server_wide(new_server, receiver):
    """Makes a database on a server of its own with these settings and environment, and one change that waits."""
    def make(settings=None, env=None, prepare=lambda server: None):
        server = new_server(settings={"shared_preload_libraries": "", **(settings or {})}, env=env)
        database = server.create_database()
        prepare(server)
        database.run("CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY)")
        database.attach("sales")
        database.run("INSERT INTO sales VALUES (1)")
        return database
    return make


def write_token_file(server, content=CANARY, mode=0o600):
    path = server.data / "token"
    path.write_bytes(content.encode())
    own(path)
    path.chmod(mode)


# sync_outbox_set_token()

def test_invariant_21_a_token_is_kept_in_a_private_file_and_sent(queue, receiver):
    receiver.behaviour = require_token(CANARY)
    queue.run("SELECT sync_outbox_set_token(%s)", [CANARY])

    assert queue.flushed()["ok"]
    assert sent_token(receiver) == CANARY
    directory = queue.server.data / "sync_outbox"
    assert directory.stat().st_mode & 0o7777 == 0o700
    for file in directory.iterdir():
        assert file.stat().st_mode & 0o7777 == 0o600
    assert {"origin": receiver.url, "token": CANARY} in kept(queue.server).values()


def test_a_token_does_not_follow_the_url(queue, receiver, new_receiver):
    queue.run("SELECT sync_outbox_set_token(%s)", [CANARY])
    elsewhere = new_receiver()
    said = []
    queue.conn.add_notice_handler(lambda notice: said.append(notice.message_primary))
    queue.configure(webapp_base_url=elsewhere.url)

    assert queue.flushed()["auth"] == "missing"
    assert elsewhere.requests == []
    assert any("sync_outbox_set_token()" in text for text in said)

    queue.configure(webapp_base_url=receiver.url + "/other/path")
    assert queue.flushed()["ok"]
    assert sent_token(receiver) == CANARY


def test_the_workers_log_says_in_words_that_a_token_is_missing(live, receiver, new_receiver):
    live.aim(receiver)
    live.configure(webapp_base_url=new_receiver().url)
    live.run("CREATE TABLE sales (id int PRIMARY KEY)")
    live.attach("sales")
    position = live.server.log.position()
    live.run("INSERT INTO sales VALUES (1)")

    # At the latest at the worker's next look (interval): it may have found out before there was anything to complain of.
    said = wait_for(lambda: live.server.log.matches("sync_outbox sends nothing", position), 25)
    assert len(said) == 1
    assert f"LOG:  sync_outbox sends nothing: auth missing: the token was set for {receiver.url}" in said[0]


def test_a_new_token_replaces_the_old(queue, receiver):
    queue.run("SELECT sync_outbox_set_token('first')")
    queue.run("SELECT sync_outbox_set_token('second')")
    queue.flush()
    assert sent_token(receiver) == "second"
    assert len([name for name in kept(queue.server) if f"_{queue.value('SELECT oid FROM pg_database WHERE datname = current_database()')}_" in name]) == 1


def test_a_token_does_not_pass_to_the_next_installation(queue, receiver):
    queue.run("SELECT sync_outbox_set_token(%s)", [CANARY])
    queue.run("SET client_min_messages = warning; DROP EXTENSION sync_outbox CASCADE; CREATE EXTENSION sync_outbox")
    queue.attach("sales")
    queue.run("INSERT INTO sales VALUES (2)")
    queue.configure(webapp_base_url=receiver.url)
    assert queue.flushed()["auth"] == "missing"


@pytest.mark.parametrize("token", ["", " ", "two words", "a\nb", "a\rX-Evil: 1", "tab\t", "tökén", "x" * 20000, "del\x7f"])
def test_what_is_no_token(queue, token):
    with pytest.raises(errors.InvalidParameterValue) as caught:
        queue.run("SELECT sync_outbox_set_token(%s)", [token])
    assert caught.value.diag.message_hint
    assert not token.strip() or token not in str(caught.value)
    assert queue.flushed()["auth"] == "missing"


def test_no_url_no_token(db):
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        db.run("SELECT sync_outbox_set_token('x')")
    assert "webapp_base_url" in caught.value.diag.message_hint


def test_an_unknown_target(queue):
    with pytest.raises(errors.InvalidParameterValue):
        queue.run("SELECT sync_outbox_set_token('x', 'nowhere')")


def test_only_an_admin_sets_a_token(queue):
    operator, admin = queue.role("operator", "sync_outbox_operator"), queue.role("admin", "sync_outbox_admin")
    with pytest.raises(errors.InsufficientPrivilege):
        queue.session(operator).execute("SELECT sync_outbox_set_token('x')")
    queue.session(admin).execute("SELECT sync_outbox_set_token('x')")


@pytest.mark.parametrize("damage, says", [
    (lambda path: path.chmod(0o640), None),  # the group may read
    (lambda path: path.chmod(0o644), "by others"),
    (lambda path: path.chmod(0o620), "by others"),
    (lambda path: path.write_text("{}"), "sync_outbox_set_token()"),
])
def test_a_kept_file_that_somebody_touched(queue, receiver, damage, says):
    queue.run("SELECT sync_outbox_set_token(%s)", [CANARY])
    database = queue.value("SELECT oid FROM pg_database WHERE datname = current_database()")
    (path,) = (queue.server.data / "sync_outbox").glob(f"token_{database}_*")
    damage(path)
    if says is None:
        assert queue.flushed()["ok"]
        return
    with pytest.raises(errors.ConfigFileError) as caught:
        queue.flush()
    assert says in str(caught.value) and CANARY not in str(caught.value)
    assert "sync_outbox_set_token()" in caught.value.diag.message_hint
    queue.run("SELECT sync_outbox_set_token('again')")
    assert queue.flushed()["ok"]


# The settings

def test_a_token_file(server_wide, receiver):
    db = server_wide({"sync_outbox.upload_token_file": "token", "sync_outbox.base_url": receiver.url},
                     prepare=lambda server: write_token_file(server, CANARY + "\n", 0o640))
    assert db.flushed()["ok"]
    assert sent_token(receiver) == CANARY
    assert kept(db.server) == {}


@pytest.mark.parametrize("error, content, mode", [
    (errors.UndefinedFile, None, None),
    (errors.ConfigFileError, "", 0o600),
    (errors.ConfigFileError, "\n", 0o600),
    (errors.ConfigFileError, CANARY, 0o604),
    (errors.ConfigFileError, CANARY, 0o660),
    (errors.ConfigFileError, CANARY + "\nmore\n", 0o600),
    (errors.ConfigFileError, CANARY * 2000, 0o600),
])
def test_a_bad_token_file(server_wide, receiver, error, content, mode):
    db = server_wide({"sync_outbox.upload_token_file": "token", "sync_outbox.base_url": receiver.url},
                     prepare=lambda server: content is not None and write_token_file(server, content, mode))
    with pytest.raises(error) as caught:
        db.flush()
    assert "sync_outbox.upload_token_file" in caught.value.diag.message_hint
    assert CANARY not in str(caught.value) and CANARY not in db.server.log.since(0)
    assert receiver.requests == []
    assert len(db.outbox("status = 'PENDING' AND attempt_count = 0")) == 1


def test_what_is_no_file(server_wide, receiver):
    db = server_wide({"sync_outbox.upload_token_file": "base", "sync_outbox.base_url": receiver.url})
    with pytest.raises(errors.ConfigFileError):
        db.flush()
    os.mkfifo(db.server.data / "fifo", 0o600)
    own(db.server.data / "fifo")
    db.server.set(sync_outbox__upload_token_file="fifo")
    with pytest.raises(errors.ConfigFileError):
        db.session().execute("SET statement_timeout = '5s'; SELECT sync_outbox_flush()")


def test_a_token_in_the_settings(server_wide, receiver):
    # Preloaded: while the library is not loaded the setting is a placeholder, which every role may read.
    db = server_wide({"sync_outbox.upload_token": CANARY, "sync_outbox.base_url": receiver.url,
                      "shared_preload_libraries": "sync_outbox", "sync_outbox.enabled": "off"})
    assert db.flushed()["ok"]
    assert sent_token(receiver) == CANARY
    plain = db.role("plain")
    with pytest.raises(errors.InsufficientPrivilege):
        db.session(plain).execute("SHOW sync_outbox.upload_token")


def test_invariant_22_the_settings_token_does_not_go_to_a_targets_url(server_wide, new_receiver, receiver):
    db = server_wide({"sync_outbox.upload_token": CANARY, "sync_outbox.base_url": receiver.url},
                     env={"SYNC_UPLOAD_TOKEN": CANARY})
    elsewhere = new_receiver()
    db.configure(webapp_base_url=elsewhere.url)
    assert db.flushed()["auth"] == "missing"
    assert elsewhere.requests == []


def test_a_kept_token_goes_before_the_settings(server_wide, receiver):
    db = server_wide({"sync_outbox.upload_token": "from-settings", "sync_outbox.base_url": receiver.url})
    db.run("SELECT sync_outbox_set_token('kept')")
    db.flush()
    assert sent_token(receiver) == "kept"


# The environment

def test_url_and_token_from_the_environment_are_persisted(server_wide, receiver):
    db = server_wide(env={"SYNC_UPLOAD_TOKEN": CANARY, "WEBAPP_BASE_URL": receiver.url})
    assert db.flushed()["ok"]
    assert sent_token(receiver) == CANARY
    assert list(kept(db.server).values()) == [{"origin": receiver.url, "token": CANARY}]

    db.server.env = {"WEBAPP_BASE_URL": receiver.url}
    db.server.restart()
    with db.server.connect(db.name) as session:
        session.execute("INSERT INTO sales VALUES (2)")
        assert session.execute("SELECT sync_outbox_flush()").fetchone()[0]["ok"]
    assert sent_token(receiver) == CANARY


def test_set_token_takes_it_from_the_environment(server_wide, receiver):
    db = server_wide(env={"SYNC_UPLOAD_TOKEN": CANARY})
    db.configure(webapp_base_url=receiver.url)
    assert db.flushed()["auth"] == "missing"
    admin = db.role("admin", "sync_outbox_admin")
    with pytest.raises(errors.InsufficientPrivilege) as caught:
        db.session(admin).execute("SELECT sync_outbox_set_token()")
    assert caught.value.diag.message_hint and kept(db.server) == {}

    db.run("SELECT sync_outbox_set_token()")  # a superuser may
    assert db.flushed()["ok"]
    assert sent_token(receiver) == CANARY


def test_nothing_in_the_environment(queue):
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        queue.run("SELECT sync_outbox_set_token()")
    assert "restart" in caught.value.diag.message_hint


# The log

def test_no_error_writes_a_token_into_the_log(queue):
    position = queue.server.log.position()
    bad = f"{CANARY} {CANARY}"
    calls = [
        sql.SQL("SELECT sync_outbox_set_token({})").format(bad),
        sql.SQL("SELECT sync_outbox_set_token({}, 'nowhere')").format(CANARY),
        sql.SQL("DO $$ BEGIN PERFORM sync_outbox_set_token({}); END $$").format(bad),
        sql.SQL("SELECT sync_outbox_configure({})").format(json.dumps({"sync_upload_token": bad})),
        sql.SQL("SELECT sync_outbox_configure({})").format(
            json.dumps({"sync_upload_token": CANARY, "uploads_local_to_remote": ["nowhere"]})),
        sql.SQL("SELECT sync_outbox_configure({})").format(
            json.dumps({"sync_upload_token": CANARY, "uploads_local_to_remote": ["pg_class"]})),
        sql.SQL("SET lock_timeout = '50ms'; SELECT sync_outbox_configure({})").format(
            json.dumps({"sync_upload_token": CANARY, "uploads_local_to_remote": [{"table": "sales", "priority": "LOW"}]})),
    ]
    writer = queue.session(autocommit=False)
    writer.execute("INSERT INTO sales VALUES (99)")
    for call in calls:
        with pytest.raises(errors.DatabaseError) as caught:
            queue.session().execute(call)
        assert CANARY not in (caught.value.diag.message_primary or "")
    log = queue.server.log.since(position)
    assert log.count("ERROR:") == len(calls)
    assert CANARY not in log

    # And other statements are logged as ever.
    with pytest.raises(errors.DivisionByZero):
        queue.session().execute("SELECT 1/0 AS seen_in_the_log")
    assert "seen_in_the_log" in queue.server.log.since(position)


def test_an_error_that_was_caught_hides_nothing_later(queue):
    position = queue.server.log.position()
    session = queue.session()
    session.execute(f"""DO $$ BEGIN
        BEGIN PERFORM sync_outbox_set_token('a {CANARY}'); EXCEPTION WHEN OTHERS THEN NULL; END; END $$""")
    with pytest.raises(errors.DivisionByZero):
        session.execute("SELECT 1/0 AS seen_in_the_log")
    assert "seen_in_the_log" in queue.server.log.since(position)


def test_no_view_shows_a_token(queue):
    queue.run("SELECT sync_outbox_set_token(%s)", [CANARY])
    queue.flush()
    for source in ["sync_outbox_overview()", "sync_outbox_target", "sync_outbox_target_state", "sync_outbox_history", "pg_settings"]:
        assert CANARY not in str(queue.rows(f"SELECT * FROM {source}"))
