"""What sync_outbox_configure() answers and refuses: members, names, shapes, URLs, rights."""

import json

import pytest
from psycopg import errors

TOKEN = "t0ken"


@pytest.fixture
def shop(db):
    db.run("""CREATE TABLE sales (id int PRIMARY KEY, note text); CREATE TABLE "Stock" (id int PRIMARY KEY, store text);
              CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY); CREATE TABLE s.hidden (id int PRIMARY KEY)""")
    return db


def attached(db):
    return {row.relation: row for row in db.rows("SELECT * FROM sync_outbox_attached")}


def url(db):
    return db.value("SELECT base_url FROM sync_outbox_target WHERE name = 'default'")


def test_both_files_at_once(shop, receiver):
    answer = shop.configure(
        webapp_base_url=receiver.url, sync_upload_token=TOKEN,
        uploads_local_to_remote=["sales", "s.t", {"table": "Stock", "priority": "HIGH", "branch_column": "store"}])

    assert answer == {
        "webapp_base_url": True, "sync_upload_token": True, "attached": ["public.sales", "s.t", 'public."Stock"'],
        "changed": [], "unchanged": [], "detached": [], "no_longer_listed": [], "ignored": []}
    shop.run('INSERT INTO sales VALUES (1); INSERT INTO "Stock" VALUES (1, \'S1\')')
    assert shop.flush() == '{"ok": true, "pending": 2, "sent": 2, "acked": 2}'
    assert [c["table"] for c in receiver.changes] == ["Stock", "sales"]
    assert receiver.requests[-1].headers["x-upload-token"] == TOKEN


def test_each_file_alone(shop, receiver):
    shop.configure(uploads_local_to_remote=["sales"])
    answer = shop.configure(webapp_base_url=receiver.url, sync_upload_token=TOKEN)
    assert (answer["attached"], answer["no_longer_listed"]) == ([], [])
    assert list(attached(shop)) == ["sales"]

    answer = shop.configure(uploads_local_to_remote=["sales"])
    assert (answer["webapp_base_url"], answer["sync_upload_token"], answer["unchanged"]) == (False, False, ["public.sales"])
    assert url(shop) == receiver.url


def test_nothing_is_not_an_error(shop):
    assert not any(shop.configure().values())
    assert not any(shop.configure(webapp_base_url=None, sync_upload_token=None, uploads_local_to_remote=None).values())


def test_unknown_members_are_listed(shop):
    answer = shop.configure(db_host="x", uploads_local_to_remote=["sales", {"table": "s.t", "batch": 5}])
    assert answer["ignored"] == ["uploads_local_to_remote[1].batch", "db_host"]


def test_what_an_entry_does_not_say_stays(shop):
    shop.attach("sales", priority="HIGH", exclude=["note"])
    assert shop.configure(uploads_local_to_remote=["sales"])["unchanged"] == ["public.sales"]
    assert shop.configure(uploads_local_to_remote=[{"table": "sales", "operations": ["insert"]}])["changed"] == ["public.sales"]
    row = attached(shop)["sales"]
    assert (row.priority, row.exclude, row.operations) == ("HIGH", ["note"], ["INSERT"])


def test_every_option_of_attach(shop):
    shop.configure(uploads_local_to_remote=[{
        "table": "Stock", "target": "default", "priority": "low", "columns": ["id"], "branch_column": "store",
        "key_columns": ["id"], "operations": ["TRUNCATE", "INSERT"], "include_old": True, "require_reason": True,
        "always": True}])
    row = attached(shop)['"Stock"']
    assert (row.priority, row.columns, row.branch_column, row.key_columns) == ("LOW", ["id"], "store", ["id"])
    assert (row.operations, row.include_old, row.require_reason, row.always) == (["INSERT", "TRUNCATE"], True, True, True)


def test_tables_that_are_no_longer_listed(shop):
    shop.configure(uploads_local_to_remote=["sales", "s.t"])
    assert shop.configure(uploads_local_to_remote=["sales"])["no_longer_listed"] == ["s.t"]
    assert set(attached(shop)) == {"sales", "s.t"}

    answer = shop.value("SELECT sync_outbox_configure(%s, prune => true)", [json.dumps({"uploads_local_to_remote": ["sales"]})])
    assert (answer["detached"], answer["no_longer_listed"]) == (["s.t"], [])
    assert list(attached(shop)) == ["sales"]
    # Without a list there is nothing to prune by.
    shop.value("SELECT sync_outbox_configure('{}', prune => true)")
    assert list(attached(shop)) == ["sales"]


def test_names_are_the_callers(shop):
    shop.run("SET search_path = s, public")
    shop.configure(uploads_local_to_remote=["hidden", "SALES", '"Stock"'])
    assert set(attached(shop)) == {"hidden", "sales", '"Stock"'}


@pytest.mark.parametrize("config", [
    "[]", '"x"', "null", "1",
    '{"webapp_base_url": 5}', '{"webapp_base_url": ""}', '{"sync_upload_token": ["x"]}', '{"sync_upload_token": ""}',
    '{"uploads_local_to_remote": "sales"}', '{"uploads_local_to_remote": {"sales": true}}',
    '{"uploads_local_to_remote": [5]}', '{"uploads_local_to_remote": [{"priority": "HIGH"}]}',
    '{"uploads_local_to_remote": [{"table": "sales", "priority": "URGENT"}]}',
    '{"uploads_local_to_remote": [{"table": "sales", "columns": "id"}]}',
    '{"uploads_local_to_remote": [{"table": "sales", "columns": [1]}]}',
    '{"uploads_local_to_remote": [{"table": "sales", "columns": []}]}',
    '{"uploads_local_to_remote": [{"table": "sales", "always": "yes"}]}',
    '{"uploads_local_to_remote": [{"table": "sales", "operations": ["MERGE"]}]}',
    '{"uploads_local_to_remote": ["sales", "public.sales"]}',
])
def test_wrong_shapes(shop, config):
    with pytest.raises(errors.InvalidParameterValue) as caught:
        shop.run("SELECT sync_outbox_configure(%s::json)", [config])
    assert caught.value.diag.message_hint
    assert attached(shop) == {}


@pytest.mark.parametrize("base_url", [
    "hub.example.org", "ftp://hub", "https://user:hunter2@hub", "https://hub?x=1", "https://hub#x", "https://h ub",
    "https://hub\u0001", "https://", "http://hub.example.org", "https://hub:99999",
])
def test_bad_urls(shop, base_url):
    with pytest.raises(errors.InvalidParameterValue) as caught:
        shop.configure(webapp_base_url=base_url, uploads_local_to_remote=["sales"])
    assert caught.value.diag.message_hint
    assert "hunter2" not in str(caught.value)
    assert attached(shop) == {}


def test_plain_http_where_it_is_allowed(shop):
    for loopback in ["http://localhost:1", "http://127.0.0.1", "http://[::1]:8080/base"]:
        shop.configure(webapp_base_url=loopback)
    shop.server.set(sync_outbox__allow_http="on")
    shop.session().execute("SELECT sync_outbox_configure('{\"webapp_base_url\": \"http://hub.example.org\"}')")
    assert url(shop) == "http://hub.example.org"


@pytest.mark.parametrize("error, config", [
    (errors.UndefinedTable, {"uploads_local_to_remote": ["sales", "nowhere"]}),
    (errors.UndefinedTable, {"uploads_local_to_remote": ["sales", "no such name; at all"]}),
    (errors.UndefinedTable, {"uploads_local_to_remote": ["hidden"]}),
    (errors.WrongObjectType, {"uploads_local_to_remote": ["sales", "pg_class"]}),
    (errors.UndefinedColumn, {"uploads_local_to_remote": ["sales", {"table": "s.t", "columns": ["x"]}]}),
    (errors.InvalidParameterValue, {"uploads_local_to_remote": ["sales"], "sync_upload_token": "a b"}),
])
def test_all_or_nothing(shop, receiver, error, config):
    shop.configure(webapp_base_url=receiver.url, sync_upload_token="old")
    with pytest.raises(error) as caught:
        shop.configure(**{"webapp_base_url": "https://new.example.org", "sync_upload_token": "new", **config})
    assert caught.value.diag.message_hint
    assert (url(shop), attached(shop)) == (receiver.url, {})
    shop.attach("sales")
    shop.run("INSERT INTO sales VALUES (1)")
    shop.flush()
    assert receiver.requests[-1].headers["x-upload-token"] == "old"


def test_a_token_without_a_url(shop):
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        shop.configure(sync_upload_token=TOKEN, uploads_local_to_remote=["sales"])
    assert attached(shop) == {}


def test_admins_configure_their_own_tables(shop, receiver):
    admin = shop.role("admin", "sync_outbox_admin")
    session = shop.session(admin)
    session.execute("SELECT sync_outbox_configure(%s)", [json.dumps({"webapp_base_url": receiver.url})])
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SELECT sync_outbox_configure(%s)", [json.dumps({"uploads_local_to_remote": ["sales"]})])
    shop.run(f"ALTER TABLE sales OWNER TO {admin}")
    session.execute("SELECT sync_outbox_configure(%s)", [json.dumps({"uploads_local_to_remote": ["sales"]})])
    with pytest.raises(errors.InsufficientPrivilege):
        shop.session(shop.role("operator", "sync_outbox_operator")).execute("SELECT sync_outbox_configure('{}')")


def test_a_mistake_that_is_no_json(shop):
    with pytest.raises(errors.InvalidTextRepresentation):
        shop.run("SELECT sync_outbox_configure('{')")
    with pytest.raises(errors.NullValueNotAllowed):
        shop.run("SELECT sync_outbox_configure(NULL)")
