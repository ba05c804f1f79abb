"""pg_cron does the worker's job where the library is not preloaded."""

import pytest

from support.wait import wait_for


@pytest.mark.timeout(180)
def test_pg_cron_flushes(new_server, receiver, run):
    """Its shortest schedule is a minute."""
    run.require("pg_cron")
    server = new_server(settings={
        "shared_preload_libraries": "pg_cron", "cron.database_name": "shop", "cron.use_background_workers": "on"})
    shop = server.create_database(name="shop")
    shop.run("SET client_min_messages = warning; CREATE EXTENSION pg_cron; CREATE EXTENSION sync_outbox")
    shop.aim(receiver)
    shop.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    shop.attach("sales")
    shop.run("SELECT cron.schedule('outbox', '* * * * *', 'SELECT sync_outbox_flush()')")
    shop.run("INSERT INTO sales VALUES (1, 0), (2, 0)")

    receiver.wait_for_requests(1, deadline=90)
    wait_for(lambda: shop.outbox() == [])
    assert wait_for(lambda: shop.rows("SELECT status FROM cron.job_run_details WHERE status <> 'running'")) == [("succeeded",)]
