"""sync_outbox_configure(): the two configuration files of the scripts, taken as they are, all or nothing."""

import json

import pytest
from psycopg import errors

from support.database import TOKEN


@pytest.fixture
def shop(db):
    db.run("CREATE TABLE sales (id int PRIMARY KEY); CREATE TABLE stock (id int PRIMARY KEY); CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY)")
    return db


def attached(database):
    return {row.relation: row.priority for row in database.rows("SELECT relation::text, priority FROM sync_outbox_attached")}


def test_all_of_it_in_one_call(shop, receiver):
    shop.configure(webapp_base_url=receiver.url, sync_upload_token=TOKEN,
                   uploads_local_to_remote=["sales", "s.t", {"table": "stock", "priority": "HIGH"}])
    shop.run("INSERT INTO sales VALUES (1); INSERT INTO s.t VALUES (1); INSERT INTO stock VALUES (1)")

    assert attached(shop) == {"sales": "NORMAL", "s.t": "NORMAL", "stock": "HIGH"}
    assert shop.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'


def test_one_file_alone_keeps_what_the_other_set(shop, receiver):
    shop.configure(webapp_base_url=receiver.url, sync_upload_token=TOKEN)
    shop.configure(uploads_local_to_remote=["sales"])
    shop.run("INSERT INTO sales VALUES (1)")

    assert shop.flushed()["acked"] == 1


def test_twice_is_once(shop, receiver):
    for _ in range(2):
        shop.configure(webapp_base_url=receiver.url, sync_upload_token=TOKEN, uploads_local_to_remote=["sales"])
    shop.run("INSERT INTO sales VALUES (1)")

    assert len(shop.outbox()) == 1


def test_unknown_members_are_ignored_and_listed(shop):
    answer = shop.configure(webapp_base_url="http://127.0.0.1:9", theme="dark", database={"host": "x"})

    assert {"theme", "database"} <= set(json.dumps(answer).replace('"', " ").split())


def test_a_table_no_longer_listed_is_reported_and_detached_only_with_prune(shop):
    shop.configure(uploads_local_to_remote=["sales", "stock"])
    answer = shop.configure(uploads_local_to_remote=["sales"])
    assert "stock" in json.dumps(answer)
    assert set(attached(shop)) == {"sales", "stock"}

    shop.run("SELECT sync_outbox_configure(%s::json, prune => true)", [json.dumps({"uploads_local_to_remote": ["sales"]})])
    assert set(attached(shop)) == {"sales"}


def test_all_or_nothing(shop, receiver, new_receiver):
    other = new_receiver()
    shop.configure(webapp_base_url=receiver.url, sync_upload_token=TOKEN, uploads_local_to_remote=["sales"])
    with pytest.raises(errors.UndefinedTable):
        shop.configure(webapp_base_url=other.url, sync_upload_token="another", uploads_local_to_remote=["stock", "nowhere"])
    shop.run("INSERT INTO sales VALUES (1)")

    assert set(attached(shop)) == {"sales"}
    assert shop.flushed()["acked"] == 1
    assert receiver.requests[0].headers["x-upload-token"] == TOKEN


def test_the_answer_does_not_show_the_token(shop, receiver):
    answer = shop.configure(webapp_base_url=receiver.url, sync_upload_token="canary-1234")

    assert "canary" not in json.dumps(answer)


def test_set_token_replaces_the_token(shop, receiver):
    shop.configure(webapp_base_url=receiver.url, sync_upload_token="old", uploads_local_to_remote=["sales"])
    shop.run("SELECT sync_outbox_set_token('new')")
    shop.run("INSERT INTO sales VALUES (1)")
    shop.flush()

    assert receiver.requests[0].headers["authorization"] == "Bearer new"


def test_the_token_file_is_private(shop, receiver):
    shop.configure(webapp_base_url=receiver.url, sync_upload_token="canary-5678")
    files = [path for path in shop.server.data.rglob("*") if path.is_file() and path.stat().st_size < 20_000
             and b"canary-5678" in path.read_bytes()]

    assert files
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o077 == 0


def test_set_token_without_one_keeps_that_of_the_environment(new_server, receiver):
    server = new_server(env={"SYNC_UPLOAD_TOKEN": "from-env"})
    db = server.create_database()
    db.run("CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY)")
    db.configure(webapp_base_url=receiver.url, uploads_local_to_remote=["sales"])
    db.run("SELECT sync_outbox_set_token()")
    db.close()
    server.env = {}
    server.restart()
    db.conn = db.session()
    db.run("INSERT INTO sales VALUES (1)")

    assert db.flushed()["acked"] == 1
    assert receiver.requests[0].headers["authorization"] == "Bearer from-env"
