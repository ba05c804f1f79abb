"""Commands on databases do not wait for the worker, and the worker comes back after them."""

import psycopg
import pytest

from support.wait import wait_for
from support.workers import settled, workers


@pytest.fixture
def busy(shop, receiver):
    """The shop with a request out that nobody answers."""
    receiver.script(receiver.hang)
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)
    return shop


@pytest.fixture
def admin(live_server):
    """A session in no database of a test."""
    with live_server.connect() as session:
        yield session


def tablespace(admin):
    admin.execute("SET allow_in_place_tablespaces = on")
    if not admin.execute("SELECT 1 FROM pg_tablespace WHERE spcname = 'elsewhere'").fetchall():
        admin.execute("CREATE TABLESPACE elsewhere LOCATION ''")
    return "elsewhere"


def test_invariant_24_drop_database_of_a_busy_worker(busy, admin, clock):
    busy.close()
    with clock(1):
        admin.execute(f"DROP DATABASE {busy.name}")


def test_drop_database_of_another_while_the_worker_is_busy(busy, admin, clock):
    admin.execute("CREATE DATABASE bystander")
    with clock(1):
        admin.execute("DROP DATABASE bystander")
    assert len(workers(busy)) == 1


def test_rename_of_a_busy_database(busy, receiver, admin, clock):
    busy.close()
    with clock(1):
        admin.execute(f"ALTER DATABASE {busy.name} RENAME TO {busy.name}_renamed")

    receiver.wait_for_requests(2)
    admin.execute(f"ALTER DATABASE {busy.name}_renamed RENAME TO {busy.name}")
    assert receiver.requests[0].keys == receiver.requests[1].keys


def test_a_moved_database_goes_on_sending(busy, receiver, admin, clock):
    busy.close()
    where = tablespace(admin)
    with clock(2):
        admin.execute(f"ALTER DATABASE {busy.name} SET TABLESPACE {where}")

    receiver.wait_for_requests(2)


def test_a_busy_database_can_be_copied(busy, receiver, admin, clock):
    busy.close()
    with clock(2):
        admin.execute(f"CREATE DATABASE {busy.name}_copy TEMPLATE {busy.name}")

    receiver.wait_for_requests(2)
    admin.execute(f"DROP DATABASE {busy.name}_copy")


def test_the_worker_comes_back_after_a_command_that_failed(busy, receiver, admin):
    busy.close()
    with pytest.raises(psycopg.errors.DuplicateDatabase):
        admin.execute(f"ALTER DATABASE {busy.name} RENAME TO postgres")

    receiver.wait_for_requests(2)


def test_invariant_24_the_worker_stays_away_until_the_command_ends(shop, receiver, admin):
    """A session in the database makes the command wait, for five seconds in vain."""
    settled(shop)
    shop.conn.execute("SELECT 1")
    with pytest.raises(psycopg.errors.ObjectInUse):
        admin.execute(f"ALTER DATABASE {shop.name} RENAME TO {shop.name}_renamed")
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)


def test_an_attempt_by_somebody_else_does_not_disturb_the_worker(shop):
    pid = settled(shop)
    stranger = shop.role("stranger")
    with shop.server.connect(user=stranger) as session:
        for command in ["DROP DATABASE {0}", "ALTER DATABASE {0} RENAME TO x", "CREATE DATABASE x TEMPLATE {0}"]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(command.format(shop.name))
    assert workers(shop) == [pid]


def test_a_database_closed_to_connections_is_no_trouble(shop, admin):
    settled(shop)
    position = shop.server.log.position()
    admin.execute(f"ALTER DATABASE {shop.name} ALLOW_CONNECTIONS false")
    (pid,) = [row[0] for row in admin.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = %s AND backend_type = 'sync_outbox worker'", [shop.name])]
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    shop.server.reload()
    admin.execute(f"ALTER DATABASE {shop.name} ALLOW_CONNECTIONS true")
    shop.server.reload()

    wait_for(lambda: workers(shop))
    assert not shop.server.log.matches("not currently accepting connections", position)
