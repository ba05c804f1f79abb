"""The key of a client certificate is a secret: a file that others can read is refused."""

import os

import pytest
from psycopg import errors


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660])
def test_defect_23_a_key_that_others_can_read_is_refused(mutual, mode):
    key = mutual.files["client_key_file"]
    key.chmod(mode)
    with pytest.raises(errors.ConfigFileError) as refused:
        mutual.flush()
    why = f"the file named by sync_outbox.client_key_file can be read or written by others (its mode is {mode:04o})"
    assert refused.value.diag.message_primary == why
    assert mutual.receiver.connections == 0
    (setting,) = [row.settings["client_key_file"] for row in mutual.rows("SELECT * FROM sync_outbox_overview()")]
    assert setting["error"] == why

    key.chmod(0o640)
    assert mutual.flushed()["ok"]
    assert "error" not in mutual.value("SELECT settings FROM sync_outbox_overview()")["client_key_file"]


def test_defect_23_a_key_of_somebody_else_is_refused(mutual):
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    os.chown(mutual.files["client_key_file"], 12345, -1)
    mutual.files["client_key_file"].chmod(0o600)
    with pytest.raises(errors.ConfigFileError):
        mutual.flush()


def test_defect_23_certificates_are_no_secret(mutual):
    for name in ("ca_file", "client_cert_file"):
        mutual.files[name].chmod(0o644)
    assert mutual.flushed()["ok"]
