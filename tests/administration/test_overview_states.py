"""sync_outbox_overview() in states that a push would take long to bring about, and wherever people look."""

import datetime

import pytest

from support.queued import put

MINUTE = datetime.timedelta(minutes=1)


def overview(db, target="default"):
    return db.row("SELECT * FROM sync_outbox_overview() WHERE target = %s", [target])


def state(db, **columns):
    db.run("SELECT sync_outbox_resume()")  # makes the default target
    db.run(f"INSERT INTO sync_outbox_target_state (target_id, {', '.join(columns)})"
           f" VALUES (1, {', '.join(columns.values())})")


def adopt(db):
    """Changes put in by hand look like those of a restored dump, which are not sent."""
    db.run("SELECT sync_outbox_adopt('same')")


def throughput(db, minutes_ago, sent, acked):
    db.run("INSERT INTO sync_outbox_throughput VALUES (1, date_trunc('minute', now()) - %s * interval '1 minute', %s, %s)",
           [minutes_ago, sent, acked])


def test_the_default_target_is_there_before_anything_has_made_it(db):
    row = overview(db)
    assert (row.clean, row.total, row.breaker, row.sender_pid, row.percent_done) == (True, 0, "closed", None, 100)
    assert (row.rows_per_minute, row.success_rate, row.estimated_completion) == (0, None, None)
    assert db.value("SELECT count(*) FROM sync_outbox_target") == 0

    put(db)
    assert (overview(db).clean, overview(db).pending) == (False, 1)


def test_a_row_per_target(db):
    db.run("INSERT INTO sync_outbox_target (name) VALUES ('second')")
    put(db, target_id=2)

    assert db.rows("SELECT target, total, clean FROM sync_outbox_overview()") == [
        ("default", 0, True), ("second", 1, False)]


@pytest.mark.parametrize("status", ["PENDING", "FAILED", "CONFLICT", "DEAD"])
def test_clean_is_when_nothing_at_all_is_left(db, status):
    assert overview(db).clean
    put(db, status=status)

    row = overview(db)
    assert not row.clean
    assert (row.total, row.pending, row.failed, row.conflicts, row.dead) == (
        1, *(int(status == each) for each in ("PENDING", "FAILED", "CONFLICT", "DEAD")))


def test_the_breaker_is_half_open_when_the_next_request_decides(db):
    state(db, consecutive_failures="6", next_try_at="now() + interval '1 minute'")
    assert overview(db).breaker == "open"
    db.run("UPDATE sync_outbox_target_state SET next_try_at = now() - interval '1 second'")
    assert overview(db).breaker == "half_open"
    db.run("UPDATE sync_outbox_target_state SET consecutive_failures = 0, next_try_at = NULL")
    assert overview(db).breaker == "closed"


def test_rates_are_of_the_last_fifteen_minutes(db):
    throughput(db, 20, 9999, 9999)
    throughput(db, 14, 200, 100)
    throughput(db, 0, 100, 80)

    row = overview(db)
    assert 180 / 15 <= row.rows_per_minute <= 180 / 14
    assert row.success_rate == 0.6


def test_percent_done_is_of_this_drain(db):
    state(db, drain_started_at="now()", drain_acked="30")
    assert overview(db).percent_done == 100
    for key in range(10):
        put(db, key=key)
    put(db, key=11, status="DEAD")

    assert overview(db).percent_done == 75


def test_completion_goes_by_the_rate_of_this_drain(db):
    adopt(db)
    state(db, drain_started_at="now() - interval '5 minutes'", drain_acked="500")
    throughput(db, 13, 1_000_000, 1_000_000)  # an earlier drain
    for minute in range(5):
        throughput(db, minute, 100, 100)
    for key in range(200):
        put(db, key=key)

    left = overview(db).estimated_completion - db.value("SELECT now()")
    assert 1.8 * MINUTE < left < 2.2 * MINUTE
    db.run("SELECT sync_outbox_pause()")
    assert overview(db).estimated_completion is None


def test_no_completion_while_nothing_moves(db):
    state(db, drain_started_at="now() - interval '3 days'", drain_acked="500")
    put(db)

    assert overview(db).estimated_completion is None


def test_the_sender_is_named(db):
    assert overview(db).sender_pid is None
    sender = db.session(autocommit=False)
    change = put(db)
    # A discard keeps the sender out with the sender's own lock.
    sender.execute("SELECT sync_outbox_discard(%s, 'stands in for one')", [[change]])
    assert overview(db).sender_pid == sender.info.backend_pid
    sender.rollback()
    assert overview(db).sender_pid is None


# Settings

def settings(db):
    return overview(db).settings


def test_settings_say_who_set_them(db):
    assert settings(db)["batch_rows"] == {"value": "1000", "source": "default"}
    assert settings(db)["request_timeout"] == {"value": "30s", "source": "default"}
    assert settings(db)["base_url"] == {"source": "missing"}

    db.server.set(sync_outbox__batch_rows=77)
    assert settings(db)["batch_rows"] == {"value": "77", "source": "configuration file"}


def test_what_the_target_says_goes_before_the_setting(db):
    db.server.set(sync_outbox__base_url="https://one.example.org", sync_outbox__upload_path="/one")
    assert settings(db)["base_url"] == {"value": "https://one.example.org", "source": "sync_outbox.base_url"}
    assert settings(db)["upload_path"] == {"value": "/one", "source": "configuration file"}

    db.run("INSERT INTO sync_outbox_target (id, name, base_url, upload_path)"
           " VALUES (1, 'default', 'https://two.example.org', '/two')")
    assert settings(db)["base_url"] == {"value": "https://two.example.org", "source": "sync_outbox_target.base_url"}
    assert settings(db)["upload_path"] == {"value": "/two", "source": "target"}


def test_of_the_token_only_where_it_comes_from(db):
    db.server.set(sync_outbox__base_url="https://hub.example.org")
    assert settings(db)["upload_token"] == {"source": "missing"}

    db.server.set(sync_outbox__upload_token="s3cret")
    assert settings(db)["upload_token"] == {"source": "sync_outbox.upload_token"}
    assert "s3cret" not in str(overview(db))


def test_a_url_that_cannot_be_used_is_reported_not_raised(db):
    db.server.set(sync_outbox__base_url="https://user:s3cret@hub.example.org")

    report = settings(db)["base_url"]
    assert (report["source"], report["error"]) == ("sync_outbox.base_url", "the URL contains credentials")
    assert report["hint"]
    assert "s3cret" not in str(overview(db))


def test_a_token_file_that_cannot_be_read_is_reported_not_raised(db):
    db.server.set(sync_outbox__base_url="https://hub.example.org", sync_outbox__upload_token_file="/nowhere/token")

    assert settings(db)["upload_token"]["error"]


def test_files_and_proxy_are_for_those_who_may_read_every_setting(db):
    db.server.set(sync_outbox__ca_file="/etc/private.pem", sync_outbox__proxy="http://user:s3cret@proxy:3128")
    assert settings(db)["ca_file"] == {"value": "/etc/private.pem", "source": "configuration file"}
    assert settings(db)["proxy"] == {"value": "http://proxy:3128", "source": "configuration file"}

    operator = db.session(db.role("op", "sync_outbox_operator"))
    seen = operator.execute("SELECT settings FROM sync_outbox_overview()").fetchone()[0]
    assert seen["ca_file"] == seen["proxy"] == {"source": "configuration file"}
    monitor = db.session(db.role("monitor", "pg_monitor"))
    seen = monitor.execute("SELECT settings FROM sync_outbox_overview()").fetchone()[0]
    assert seen["ca_file"]["value"] == "/etc/private.pem"


def test_what_pg_settings_hides_from_a_role_the_overview_hides_too(db):
    """The library is loaded in both sessions first: before that, neither has a setting of it."""
    names = "SELECT replace(name, 'sync_outbox.', '') FROM pg_settings WHERE name LIKE 'sync_outbox.%'"
    operator = db.session(db.role("op", "sync_outbox_operator"))
    seen = operator.execute("SELECT settings FROM sync_outbox_overview()").fetchone()[0]
    shown = set(settings(db))
    hidden = {name for name, in db.rows(names)} - {name for name, in operator.execute(names).fetchall()}

    assert len(hidden & shown) >= 5
    assert {name for name in hidden if "value" in seen.get(name, {})} == set()


# Where people look

def test_in_a_read_only_transaction_without_a_transaction_id(db):
    put(db)
    with db.conn.transaction():
        db.run("SET TRANSACTION READ ONLY")
        assert overview(db).pending == 1
        assert db.value("SELECT pg_current_xact_id_if_assigned()") is None


def test_on_a_standby(new_server, run):
    primary = new_server()
    db = primary.create_database()
    db.run("CREATE EXTENSION sync_outbox")
    put(db, status="DEAD")
    put(db)
    copy = run.directory(f"{primary.name}_standby")
    run.call("pg_basebackup", "-h", primary.sockets, "-U", "postgres", "-D", copy, "-R", "--checkpoint=fast", "--no-sync")
    standby = new_server(data=copy)

    with standby.connect(db.name) as session:
        assert session.execute("SELECT pending, dead, sender_pid FROM sync_outbox_overview()").fetchone() == (1, 1, None)
        assert session.execute("SELECT total, blocked FROM sync_outbox_stats()").fetchone() == (2, 1)
    db.close()


def test_in_another_server_encoding(quiet_server, watched):
    db = watched(quiet_server).create_database("TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'")
    db.run("CREATE EXTENSION sync_outbox")
    adopt(db)
    change = put(db, table_name="año", key={"niño": "é"}, status="DEAD", branch="Málaga")
    put(db, table_name="año", key={"niño": "é"}, branch="Málaga")
    db.run("SELECT sync_outbox_pause(reason => 'mañana')")

    assert db.rows("SELECT table_name, total, blocked FROM sync_outbox_stats('Málaga')") == [("año", 2, 1)]
    assert overview(db).paused_reason == "mañana"
    db.run("SELECT sync_outbox_requeue(reason => 'otra vez, señor')")
    db.run("SELECT sync_outbox_discard(%s, 'otra vez, señor')", [[change]])
    assert {row.reason for row in db.rows("SELECT reason FROM sync_outbox_history")} == {"otra vez, señor"}
    db.close()
    quiet_server.drop_database(db.name)
