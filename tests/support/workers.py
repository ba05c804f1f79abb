"""Workers and launcher as pg_stat_activity shows them, and databases that they work for."""

from .wait import wait_for

# How many processes of ours there are.
OURS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'sync_outbox%'"


def workers(database):
    """pids of the workers of a database."""
    return [row.pid for row in database.rows(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'sync_outbox worker' AND datname = %s", [database.name])]


def settled(database, deadline=10):
    """The database's worker, once it waits for something to do."""
    return wait_for(lambda: database.rows(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'sync_outbox worker' AND datname = %s"
        " AND state = 'idle' AND query = 'nothing to send'", [database.name]), deadline, "an idle worker")[0].pid


def shop_on(server, receiver):
    """The extension and an attached table in a new database of a server."""
    shop = server.create_database()
    shop.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    shop.aim(receiver)
    shop.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    shop.attach("sales")
    return shop


def reconnected(shop):
    shop.close()
    shop.conn = shop.session()
    return shop
