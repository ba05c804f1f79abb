"""What a request looks like to a receiver that knows the wire's description and nothing else."""

import json
import urllib.parse

from support import behaviours
from support.database import TOKEN


def test_a_request_as_the_wire_describes_it(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1, 5, 'añejo'); UPDATE sales SET qty = 6; DELETE FROM sales")
    keys = sales.keys()
    sales.flush()

    (request,) = receiver.requests
    assert (request.method, request.path) == ("POST", "/api/sync/upload_outbox")
    assert request.headers["content-type"].split(";")[0] == "application/json"
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["x-upload-token"] == TOKEN
    assert request.headers["user-agent"] == "sync_outbox/0.2.0"
    assert request.headers["idempotency-key"]
    assert int(request.headers["content-length"]) == len(request.raw)

    six = [{name: change[name] for name in ("schema", "table", "op", "pk", "data", "dedup_key")}
           for change in request.changes]
    assert six == [
        {"schema": "public", "table": "sales", "op": "INSERT", "pk": {"id": 1},
         "data": {"id": 1, "qty": 5, "note": "añejo"}, "dedup_key": keys[0]},
        {"schema": "public", "table": "sales", "op": "UPDATE", "pk": {"id": 1}, "data": {"qty": 6}, "dedup_key": keys[1]},
        {"schema": "public", "table": "sales", "op": "DELETE", "pk": {"id": 1}, "data": None, "dedup_key": keys[2]}]
    assert list(request.body) == ["changes"]


def test_names_and_values_that_need_escaping(sales, receiver):
    sales.run('CREATE TABLE "we\\ird ""t\t" ("k\\""" text PRIMARY KEY)')
    sales.attach('"we\\ird ""t\t"')
    sales.run('INSERT INTO "we\\ird ""t\t" VALUES (%s)', ['line\nbreak "quoted" \\ \x01 𝄞'])
    sales.flush()

    (change,) = receiver.changes
    assert (change["table"], change["pk"]) == ('we\\ird "t\t', {'k\\"': 'line\nbreak "quoted" \\ \x01 𝄞'})


def test_numbers_keep_every_digit(sales, receiver):
    sales.run("CREATE TABLE precise (id bigint PRIMARY KEY, v numeric)")
    sales.attach("precise")
    sales.run("INSERT INTO precise VALUES (9223372036854775807, 1234567890123456789012345678901234567890.10)")
    sales.flush()

    assert '"v":1234567890123456789012345678901234567890.10' in receiver.requests[0].text.replace(": ", ":")
    assert receiver.changes[0]["pk"] == {"id": 9223372036854775807}


def test_the_reason_all_changes_share_is_a_header(sales, receiver):
    sales.run("SET sync_outbox.reason = 'ajuste de año'; INSERT INTO sales VALUES (1), (2)")
    sales.flush()

    assert urllib.parse.unquote(receiver.requests[0].headers["x-reason"]) == "ajuste de año"
    assert receiver.requests[0].headers["x-reason"].isascii()
    assert {change["reason"] for change in receiver.changes} == {"ajuste de año"}


def test_a_reason_cannot_inject_a_header(sales, receiver):
    sales.run("SELECT set_config('sync_outbox.reason', E'first line\\r\\nX-Evil: 1', false)")
    sales.run("INSERT INTO sales VALUES (1)")

    assert sales.flushed()["acked"] == 1
    assert "x-evil" not in receiver.requests[0].headers


def test_different_reasons_are_no_header(sales, receiver):
    sales.run("SET sync_outbox.reason = 'first reason'; INSERT INTO sales VALUES (1)")
    sales.run("SET sync_outbox.reason = 'second reason'; INSERT INTO sales VALUES (2)")
    sales.flush()

    assert all("x-reason" not in request.headers for request in receiver.requests if len(request.changes) == 2)
    assert [change["reason"] for change in receiver.changes] == ["first reason", "second reason"]


def test_the_same_batch_keeps_its_idempotency_key_and_another_has_another(sales, receiver):
    receiver.script(behaviours.status(503), behaviours.status(503))
    sales.run("INSERT INTO sales VALUES (1)")
    for _ in range(3):
        sales.flush()
    sales.run("INSERT INTO sales VALUES (2)")
    sales.flush()

    first, second, third, other = [request.headers["idempotency-key"] for request in receiver.requests]
    assert first == second == third != other
    assert len({request.text for request in receiver.requests[:3]}) == 1


def test_a_retry_has_the_same_dedup_key_after_a_restart_too(new_server, receiver):
    db = new_server().create_database()
    db.run("CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY)")
    db.aim(receiver)
    db.attach("sales")
    db.run("INSERT INTO sales VALUES (1)")
    receiver.script(behaviours.apply_and_vanish)
    db.flush()
    db.close()
    db.server.restart()
    db.conn = db.session()
    db.flush()

    first, second = receiver.changes
    assert first["dedup_key"] == second["dedup_key"]


def test_compression_when_asked_for(sales, receiver):
    sales.server.set(sync_outbox__compression="on")
    sales.run("INSERT INTO sales SELECT n, 0, 'the same words again and again' FROM generate_series(1, 200) n")
    sales.flush()

    (request,) = receiver.requests
    assert request.headers["content-encoding"] == "gzip"
    assert len(request.raw) < len(request.text) / 5
    assert len(request.changes) == 200 and sales.outbox() == []


def test_the_connection_is_kept(sales, receiver):
    sales.server.set(sync_outbox__batch_rows=10)
    sales.run("INSERT INTO sales SELECT n FROM generate_series(1, 100) n")
    sales.flush()

    assert len(receiver.requests) >= 10
    assert receiver.connections == 1


def test_the_upload_path_can_be_set(sales, receiver):
    sales.server.set(sync_outbox__upload_path="/v2/in")
    sales.run("INSERT INTO sales VALUES (1)")
    sales.flush()

    assert receiver.requests[0].path == "/v2/in"


def test_a_base_url_with_a_path_and_a_slash(sales, receiver):
    sales.configure(webapp_base_url=receiver.url + "/tenant/", sync_upload_token=TOKEN)
    sales.run("INSERT INTO sales VALUES (1)")

    assert sales.flushed()["acked"] == 1
    assert receiver.requests[0].path == "/tenant/api/sync/upload_outbox"


def test_no_proxy_is_taken_from_the_environment(new_server, receiver, new_receiver):
    proxy = new_receiver()
    db = new_server(env={name: proxy.url for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "HTTPS_PROXY")}).create_database()
    db.run("CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY)")
    db.aim(receiver)
    db.attach("sales")
    db.run("INSERT INTO sales VALUES (1)")

    assert db.flushed()["acked"] == 1
    assert proxy.requests == []


def test_members_that_may_stand_beside_the_six(sales, receiver):
    """None of them is needed; those that are there are right."""
    sales.run("SET sync_outbox.reason = 'stock taking'; INSERT INTO sales VALUES (1)")
    (captured,) = sales.outbox()
    sales.flush()

    (change,) = receiver.changes
    extra = set(change) - {"schema", "table", "op", "pk", "data", "dedup_key"}
    assert extra <= {"id", "txid", "branch", "reason", "old", "created_at"}
    assert change.get("id", captured.id) == captured.id
    assert str(change.get("txid", captured.txid)) == str(captured.txid)
    assert json.dumps(change.get("reason", "stock taking")) == '"stock taking"'
