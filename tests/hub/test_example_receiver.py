"""The receiver that is shipped as an example, over real sockets and a real hub."""

import base64
import gzip
import hashlib
import hmac
import json
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time

import pytest

from support.example_receiver import PATH, PROGRAM, TOKEN, body, insert, raw
from support.run import own
from support.wait import wait_for


def test_a_body_is_applied_and_answered(example):
    good, bad = insert(1, qty=5), insert(2, qty="x")
    status, answer, headers = example.post(body(good, bad))

    assert status == 200 and headers["Content-Type"] == "application/json"
    assert answer == {"acked": [good["dedup_key"]], "conflicts": [], "errors": [
        {"dedup_key": bad["dedup_key"], "error": 'invalid input syntax for type integer: "x"'}]}
    assert example.db.rows("SELECT * FROM sales") == [(1, 5)]
    wait_for(lambda: "1 acked, 1 errors, 0 conflicts" in example.said())


def test_many_requests_on_one_connection(example):
    connection = example.connect()
    for row in range(100):
        assert example.post(body(insert(row)), connection)[0] == 200
    assert example.post(body({}), connection)[0] == 400
    assert example.post(body(insert(1000)), connection)[0] == 200, "an error keeps the connection"


def test_requests_side_by_side(example):
    statuses = []

    def send(sender):
        for row in range(10):
            statuses.append(example.post(body(insert(sender * 100 + row)))[0])
    senders = [threading.Thread(target=send, args=[sender]) for sender in range(12)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert statuses == [200] * 120
    assert example.db.value("SELECT count(*) FROM sales") == 120
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sync_outbox receiver'"
    assert example.db.value(sessions) <= 4


def test_a_repeated_body_is_acked_again(example):
    once = body(insert(1, qty=1))
    assert example.post(once) [:2] == example.post(once)[:2]


@pytest.mark.parametrize("headers", [
    {"Authorization": None}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"},
    {"Authorization": "Bearer"}, {"Authorization": f"Bearer {TOKEN}x"},
    {"Authorization": None, "X_Upload_Token": "wrong"},
    {"Authorization": "Bearer \xe9"}, {"Authorization": "Bearer wrong", "X_Upload_Token": TOKEN}])
def test_a_wrong_token_is_401(example, headers):
    status, answer, answered = example.post(body(insert(1)), **headers)
    assert (status, answer) == (401, {"error": "the token is missing or wrong"})
    assert answered["WWW-Authenticate"] == "Bearer"
    assert example.db.rows("SELECT * FROM sales") == []
    assert TOKEN not in example.said()


@pytest.mark.parametrize("headers",
                         [{"Authorization": f"bearer {TOKEN}"}, {"Authorization": None, "X_Upload_Token": TOKEN}])
def test_both_places_of_the_token(example, headers):
    assert example.post(body(insert(1)), **headers)[0] == 200


@pytest.mark.parametrize("data",
                         [b"", b"nonsense", b"[]", b"{}", b'{"changes": [{}]}', b'{"changes": "\xff"}',
                          b'"\xed\xa0\x80"'])
def test_what_is_no_body_of_changes_is_400(example, data):
    status, answer, _ = example.post(data)
    assert status == 400 and answer["error"]


def test_another_path_or_method_is_404_and_405(example):
    assert example.post(body(), path="/other")[0] == 404
    connection = example.connect()
    connection.request("GET", PATH)
    response = connection.getresponse()
    assert response.status == 405 and response.headers["Allow"] == "POST"


@pytest.mark.parametrize("headers",
                         [{"Content_Type": "text/plain"}, {"Content_Type": None}, {"Content_Encoding": "br"}])
def test_another_kind_of_body_is_415(example, headers):
    assert example.post(body(insert(1)), **headers)[0] == 415


def test_content_type_may_name_the_charset(example):
    assert example.post(body(insert(1)), Content_Type="application/json; charset=utf-8")[0] == 200


@pytest.mark.parametrize("length, status", [(None, 411), ("x", 400), ("-1", 400), ("+1", 400), ("1_0", 400)])
def test_a_length_is_needed(example, length, status):
    connection = example.connect()
    connection.putrequest("POST", PATH)
    connection.putheader("Authorization", f"Bearer {TOKEN}")
    connection.putheader("Content-Type", "application/json")
    if length is not None:
        connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == status


def test_too_large_is_413_before_the_body_is_read(new_example):
    example = new_example("--max-body", "100000")
    status, answer, _ = example.post(b" " * 20_000_000)
    assert status == 413 and "100000" in answer["error"]
    assert example.post(b" " * 100_001)[0] == 413
    assert example.post(json.dumps(body(insert(1))).encode() + b" " * 90_000)[0] == 200


def test_gzip(example):
    packed = gzip.compress(json.dumps(body(insert(1, qty=3))).encode())
    assert example.post(packed, Content_Encoding="gzip")[0] == 200
    assert example.db.rows("SELECT * FROM sales") == [(1, 3)]
    for broken in [packed[:-3], packed + b"x", b"plain", b""]:
        assert example.post(broken, Content_Encoding="gzip")[0] == 400


def test_a_gzip_bomb_is_413_and_costs_little_memory(new_example):
    example = new_example("--max-body", "1000000")
    bomb = gzip.compress(b" " * 400_000_000)
    assert example.post(bomb, Content_Encoding="gzip")[0] == 413
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{example.process.pid}/status").read_text())[1])
    assert peak < 150_000


def test_expect_100_continue(example):
    data = json.dumps(body(insert(1))).encode()
    head = (f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
            f"Content-Length: {len(data)}\r\nAuthorization: Bearer %s\r\n\r\n")
    with raw(example, head % TOKEN) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(data)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    with raw(example, head % "wrong") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")
    with raw(example, head.replace(str(len(data)), "999999999") % TOKEN) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_ends_early_applies_nothing(example):
    data = json.dumps(body(insert(1))).encode()
    with raw(example, f"POST {PATH} HTTP/1.1\r\nContent-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\n"
             f"Content-Length: {len(data) + 1}\r\n\r\n", data) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert example.db.rows("SELECT * FROM sales") == []


# Ends the receiver's sessions; comes back when they have ended.
HANG_UP = """SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE application_name = 'sync_outbox receiver'"""


def test_a_database_that_goes_away_is_503_and_is_found_again(example):
    assert example.post(body(insert(1)))[0] == 200
    example.db.run(HANG_UP)
    assert example.post(body(insert(2)))[0] == 200, "a lost idle connection is not the sender's business"

    example.db.run(f"ALTER ROLE {example.login} NOLOGIN")
    example.db.run(HANG_UP)
    status, _, headers = example.post(body(insert(3)))
    assert status == 503 and headers["Retry-After"] == "1"
    example.db.run(f"ALTER ROLE {example.login} LOGIN")
    assert example.post(body(insert(3)))[0] == 200


def test_errors_that_pass_are_503(example):
    example.db.run("INSERT INTO sales VALUES (1, 1)")
    example.db.run(f"ALTER ROLE {example.login} SET statement_timeout = '300ms'")
    with example.db.session(autocommit=False) as holder:
        holder.execute("UPDATE sales SET qty = 2")
        assert example.post(body(insert(1, qty=3)))[0] == 503
    assert example.post(body(insert(1, qty=3)))[0] == 200


def test_a_missing_grant_is_500_and_says_so_in_the_log_only(example):
    example.db.run(f"REVOKE EXECUTE ON FUNCTION sync_outbox_apply_text(text) FROM {example.login}")
    status, answer, _ = example.post(body(insert(1)))
    assert status == 500 and "sync_outbox_apply" not in answer["error"]
    assert "permission denied for function sync_outbox_apply" in example.said()


def refuses(example):
    try:
        socket.create_connection(("127.0.0.1", example.port), timeout=10).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_lets_a_request_finish(example):
    idle = example.connect()
    assert example.post(body(insert(9)), idle)[0] == 200
    example.db.run("INSERT INTO sales VALUES (1, 1)")
    holder = example.db.session(autocommit=False)
    holder.execute("UPDATE sales SET qty = 2")
    answers = []
    request = threading.Thread(target=lambda: answers.append(example.post(body(insert(1, qty=3)))))
    request.start()
    wait_for(lambda: example.db.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))
    example.process.send_signal(signal.SIGTERM)
    wait_for(lambda: refuses(example), what="no new connections")
    assert example.process.poll() is None
    holder.commit()
    request.join()
    assert answers[0][0] == 200
    assert example.process.wait(5) == 0
    assert "stopped" in example.said()


def test_sigterm_when_idle(example):
    connection = example.connect()
    assert example.post(body(insert(1)), connection)[0] == 200
    began = time.monotonic()
    assert example.stop() == 0
    assert time.monotonic() - began < 2


def test_it_does_not_start_without_a_token(db, tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for arguments in [[], ["--token-file", empty]]:
        done = subprocess.run(["/usr/bin/python3", PROGRAM, *arguments], capture_output=True, text=True, env={},
                              timeout=20)
        assert done.returncode != 0 and "no token" in done.stderr


def test_the_stores_own_changes_arrive(db, new_example, new_server):
    """From capture to the hub's table, with nothing in between but what is shipped."""
    example = new_example()
    store = new_server().create_database()
    store.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    store.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    store.configure(webapp_base_url=f"http://127.0.0.1:{example.port}", sync_upload_token=TOKEN)
    store.attach("sales")
    store.run("INSERT INTO sales SELECT n, n FROM generate_series(1, 2500) n")
    store.run("UPDATE sales SET id = id + 10000 WHERE id % 3 = 0; DELETE FROM sales WHERE id % 5 = 0")
    assert store.flushed()["ok"]
    assert db.rows("SELECT * FROM sales ORDER BY id") == store.rows("SELECT * FROM sales ORDER BY id")
    store.close()


# Signed requests

SECRETS = ["whsec_b25lIHNlY3JldCwgMzIgYnl0ZXMgbG9uZywgeWVzIQ==", "whsec_dHdvIHNlY3JldCwgMzIgYnl0ZXMgbG9uZywgeWVzIQ"]
OTHER = "whsec_" + "b3RoZXIg" * 4


def signed(secret, body, at=None):
    """The three headers of a signed body."""
    encoded = secret.removeprefix("whsec_")
    key = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    timestamp = str(int(time.time() if at is None else at))
    signature = base64.b64encode(hmac.digest(key, b"an-id." + timestamp.encode() + b"." + body,
                                             hashlib.sha256)).decode()
    return {"webhook_id": "an-id", "webhook_timestamp": timestamp, "webhook_signature": f"v1,{signature}"}


@pytest.fixture
def verifying(new_example, tmp_path):
    """An example that wants signatures by either of two secrets."""
    path = tmp_path / "signing-secret"
    path.write_text("\n".join(SECRETS) + "\n")
    return new_example("--signing-secret-file", path)


def test_a_signature_by_any_of_the_secrets_is_good(verifying):
    for row, secret in enumerate(SECRETS):
        data = json.dumps(body(insert(row))).encode()
        assert verifying.post(data, **signed(secret, data))[0] == 200
    # Several signatures in one header, some of them not ours.
    data = json.dumps(body(insert(5))).encode()
    headers = signed(SECRETS[0], data)
    headers["webhook_signature"] = f"v1a,xyz v1,bm9uZQ== {headers['webhook_signature']}"
    assert verifying.post(data, **headers)[0] == 200


def test_a_compressed_body_is_verified_as_json(verifying):
    data = json.dumps(body(insert(1))).encode()
    assert verifying.post(gzip.compress(data), content_encoding="gzip", **signed(SECRETS[0], data))[0] == 200


def test_what_is_not_well_signed_is_turned_away(verifying):
    data = json.dumps(body(insert(1))).encode()
    good = signed(SECRETS[0], data)
    stranger = signed("whsec_" + base64.b64encode(b"x" * 32).decode(), data)
    for headers, why in [
            ({}, "not signed"), (good | {"webhook_id": None}, "not signed"),
            (good | {"webhook_timestamp": "soon"}, "not signed"),
            (good | {"webhook_signature": None}, "not signed"), (stranger, "wrong"),
            (good | {"webhook_id": "another"}, "wrong"),
            (good | {"webhook_signature": good["webhook_signature"].replace("v1,", "v2,")}, "wrong"),
            (signed(SECRETS[0], data + b" "), "wrong"),
            (signed(SECRETS[0], data, time.time() - 301), "seconds from now"),
            (signed(SECRETS[0], data, time.time() + 330), "seconds from now")]:
        status, answer, _ = verifying.post(data, **headers)
        assert (status, why in answer["error"]) == (401, True), (headers, answer)
    assert verifying.db.rows("SELECT * FROM sales") == []


def test_a_signing_store_and_a_verifying_hub(verifying, new_server, run):
    """The whole way, with both secrets in the store's file as while they are exchanged."""
    server = new_server()
    path = run.directory("signing_store") / "secret"
    path.write_text(f"{OTHER}\n{SECRETS[1]}\n")
    path.chmod(0o600)
    own(path)
    server.set(sync_outbox__signing_secret_file=path, sync_outbox__compression="on")
    store = server.create_database()
    store.run("CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    store.configure(webapp_base_url=f"http://127.0.0.1:{verifying.port}", sync_upload_token=TOKEN)
    store.attach("sales")
    store.run("INSERT INTO sales VALUES (1, 5)")

    assert store.flushed()["acked"] == 1
    assert verifying.db.rows("SELECT * FROM sales") == [(1, 5)]
    path.write_text(OTHER)
    store.run("UPDATE sales SET qty = 6")
    assert store.flushed()["auth"] == "invalid"

