"""Where the server lets itself be sent: never to metadata services and link-local neighbours, by address or by name, and
with a list nowhere else than the list says."""

import os
import subprocess

import pytest
from psycopg import errors

from support.database import TOKEN

METADATA = ["169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]", "[fd00:ec2::254]", "[fe80::1]", "0.0.0.0"]


def aim_at(database, host):
    database.configure(webapp_base_url=f"https://{host}", sync_upload_token=TOKEN)


@pytest.mark.parametrize("host", METADATA)
def test_an_address_is_refused_where_it_is_given(sales, host):
    with pytest.raises(errors.InvalidParameterValue) as refused:
        aim_at(sales, host)
    assert "address" in refused.value.diag.message_primary
    assert "allowed_addresses" in refused.value.diag.message_hint


@pytest.mark.parametrize("host", ["10.0.0.1", "192.168.1.1", "172.16.0.1", "[fd12::1]", "hub.example.org"])
def test_private_addresses_and_names_can_be_given(sales, host):
    aim_at(sales, host)


def test_an_address_that_an_admin_put_into_the_table_is_refused_too(sales):
    sales.run("UPDATE sync_outbox_target SET base_url = 'https://169.254.169.254'")
    sales.run("INSERT INTO sales VALUES (1)")
    with pytest.raises(errors.InvalidParameterValue):
        sales.flush()
    assert [(change.status, change.attempt_count) for change in sales.outbox()] == [("PENDING", 0)]


def test_a_list_is_all_that_is_allowed(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1)")
    sales.run("UPDATE sync_outbox_target SET base_url = replace(base_url, '127.0.0.1', 'localhost')")
    sales.run("SELECT sync_outbox_set_token(%s)", [TOKEN])
    sales.server.set(sync_outbox__allowed_addresses="10.0.0.0/8, 192.168.1.7")

    answer = sales.flushed()

    assert (answer["ok"], answer["sent"], answer["acked"]) == (False, 0, 0)
    assert 'of the host "localhost" is not in sync_outbox.allowed_addresses' in answer["error"]
    assert receiver.connections == 0
    assert [(change.status, change.attempt_count, change.refusals) for change in sales.outbox()] == [("PENDING", 0, 0)]

    sales.server.set(sync_outbox__allowed_addresses="10.0.0.0/8, 127.0.0.0/8, ::1")
    assert sales.flushed()["acked"] == 1


def test_a_list_that_is_none_sends_nothing(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1)")
    sales.server.set(sync_outbox__allowed_addresses="10.0.0.0/8, nonsense")
    with pytest.raises(errors.ConfigFileError) as refused:
        sales.flush()
    assert '"nonsense"' in refused.value.diag.message_primary
    assert refused.value.diag.message_hint
    assert receiver.connections == 0


# By name: a server that sees another /etc/hosts than the machine does.

HOSTS = """
127.0.0.1 localhost hub.test
169.254.169.254 metadata.test
::ffff:169.254.169.254 mapped.test
64:ff9b::a9fe:a9fe nat64.test
2002:a9fe:a9fe::1 sixtofour.test
fe80::1 neighbour.test
169.254.169.254 both.test
127.0.0.1 both.test
"""


@pytest.fixture
def server_with_names(new_server, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text(HOSTS)
    hosts.chmod(0o644)
    within = ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]
    if os.geteuid() != 0 or subprocess.run([*within, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs root and mount namespaces")
    return new_server(within=within)


def test_a_name_is_refused_by_what_it_resolves_to(server_with_names, receiver):
    db = server_with_names.create_database()
    db.run("CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY)")
    db.aim(receiver)
    db.attach("sales")
    server_with_names.set(sync_outbox__allow_http="on")
    db.run("INSERT INTO sales VALUES (1)")
    before = db.outbox()

    for name in ("metadata", "mapped", "nat64", "sixtofour", "neighbour"):
        db.configure(webapp_base_url=f"http://{name}.test:{receiver.port}", sync_upload_token=TOKEN)
        answer = db.flushed()
        assert (answer["ok"], answer["sent"]) == (False, 0), name
        assert f'of the host "{name}.test" is' in answer["error"], name
        assert db.outbox() == before
    assert receiver.connections == 0

    # Of a name with good and bad addresses, the good ones are used.
    db.configure(webapp_base_url=f"http://both.test:{receiver.port}", sync_upload_token=TOKEN)
    assert db.flushed()["acked"] == 1
