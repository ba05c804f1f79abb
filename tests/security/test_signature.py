"""Signed requests: what Standard Webhooks asks for, and secrets that stay where they are."""

import base64
import hashlib
import hmac
import pathlib
import tempfile
import time

import pytest
from psycopg import errors

from support import behaviours
from support.run import own
from support.wait import wait_for

OLD = "whsec_b2xkIHNlY3JldCwgMzIgYnl0ZXMgbG9uZywgeWVzIQ=="
NEW = "whsec_bmV3IHNlY3JldCwgMzIgYnl0ZXMgbG9uZywgeWVzIQ"


def expected(secret, request):
    """What a receiver computes, from the specification's text."""
    encoded = secret.removeprefix("whsec_")
    key = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.{request.text}".encode()
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


@pytest.fixture
def secrets(run):
    """A directory of the server's user. Not tmp_path, which another run of pytest closes to other users."""
    where = pathlib.Path(tempfile.mkdtemp(dir=run.where))
    own(where)
    return where


@pytest.fixture
def secret_file(secrets):
    def write(content, mode=0o600, name="signing-secret"):
        path = secrets / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        own(path)
        return path
    return write


@pytest.fixture
def signed(sales, secret_file):
    sales.server.set(sync_outbox__signing_secret_file=secret_file(OLD + "\n"))
    sales.run("INSERT INTO sales VALUES (1, 0, 'añejo')")
    return sales


def test_a_request_is_signed_as_the_specification_says(signed, receiver):
    assert signed.flushed()["acked"] == 1

    (request,) = receiver.requests
    assert request.headers["webhook-id"] == request.headers["idempotency-key"]
    assert "." not in request.headers["webhook-id"]
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 30
    assert request.headers["webhook-signature"] == expected(OLD, request)


def test_without_secrets_nothing_is_signed(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1)")
    sales.flush()

    assert not [name for name in receiver.requests[0].headers if name.startswith("webhook")]


def test_the_json_is_signed_and_not_its_compression(signed, receiver):
    signed.server.set(sync_outbox__compression="on")
    signed.flush()

    (request,) = receiver.requests
    assert request.headers["content-encoding"] == "gzip"
    assert request.headers["webhook-signature"] == expected(OLD, request)


def test_two_secrets_sign_twice(signed, receiver, secret_file):
    secret_file(f"{OLD}\n{NEW}\n")
    signed.flush()

    (request,) = receiver.requests
    assert request.headers["webhook-signature"].split() == [expected(OLD, request), expected(NEW, request)]


def test_a_retry_has_the_same_id_and_its_own_time(signed, receiver):
    receiver.script(behaviours.status(503))
    signed.flush()
    (first,) = receiver.requests
    wait_for(lambda: int(time.time()) > int(first.headers["webhook-timestamp"]))
    signed.flush()

    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert int(first.headers["webhook-timestamp"]) < int(second.headers["webhook-timestamp"])
    assert second.headers["webhook-signature"] == expected(OLD, second)


def test_a_secret_that_was_exchanged_is_read_again_after_a_401(signed, receiver, secret_file):
    def rotate(request, wire):
        secret_file(NEW)
        wire.answer(401)
    receiver.script(rotate)

    assert signed.flushed()["acked"] == 1
    assert receiver.requests[1].headers["webhook-signature"] == expected(NEW, receiver.requests[1])


def test_a_targets_own_secret_goes_before_the_setting(signed, receiver, secret_file):
    signed.run("UPDATE sync_outbox_target SET signing_secret_file = %s", [str(secret_file(NEW, name="of-the-target"))])
    signed.flush()

    assert receiver.requests[0].headers["webhook-signature"] == expected(NEW, receiver.requests[0])


def test_an_admin_cannot_name_the_file(sales):
    admin = sales.session(sales.role("a", "sync_outbox_admin"))
    with pytest.raises(errors.InsufficientPrivilege):
        admin.execute("UPDATE sync_outbox_target SET signing_secret_file = '/etc/passwd'")
    admin.execute("SELECT sync_outbox_resume()")  # loads the library
    with pytest.raises(errors.CantChangeRuntimeParam):
        admin.execute("SET sync_outbox.signing_secret_file = '/etc/passwd'")


@pytest.mark.parametrize("content, mode, why", [
    (OLD, 0o644, "can be read or written by others"),
    ("", 0o600, "holds no secret"),
    ("canary-secret", 0o600, "holds a line that is not whsec_"),
    ("whsec_Y2FuYXJ5", 0o600, "between 24 and 64 bytes"),
    (f"{OLD}\n{OLD}\n{NEW}", 0o600, "holds more than 2 secrets"),
    (b"\xff\xfe", 0o600, "holds a line that is not whsec_"),
    ("x" * 100_000, 0o600, "longer"),
], ids=["mode", "empty", "no prefix", "short", "three", "not utf-8", "huge"])
def test_a_bad_file_sends_nothing_and_is_not_shown(signed, receiver, secret_file, content, mode, why):
    position = signed.server.log.position()
    secret_file(content, mode)
    with pytest.raises(errors.ConfigFileError) as refused:
        signed.flush()

    assert why in refused.value.diag.message_primary
    assert refused.value.diag.message_hint
    shown = str(refused.value) + signed.server.log.since(position)
    assert not [secret for secret in ("canary", "Y2FuYXJ5", OLD, NEW) if secret in shown]
    assert receiver.requests == []
    assert [(change.status, change.attempt_count) for change in signed.outbox()] == [("PENDING", 0)]


def test_a_file_that_is_not_there(signed, receiver, secrets):
    (secrets / "signing-secret").unlink()
    with pytest.raises(errors.UndefinedFile):
        signed.flush()
    assert receiver.requests == []


def test_the_path_is_for_those_who_see_every_setting(signed):
    operator = signed.session(signed.role("o", "sync_outbox_operator"))
    (settings,) = operator.execute("SELECT settings FROM sync_outbox_overview()").fetchone()
    assert "value" not in settings["signing_secret_file"]
    shown = signed.value("SELECT settings->'signing_secret_file'->>'value' FROM sync_outbox_overview()")
    assert shown.endswith("signing-secret")
