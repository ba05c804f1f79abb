"""The harness itself: the private server sees the extension, and the first act of the story runs."""


def test_private_server_offers_the_extension(quiet_server):
    assert quiet_server.value("SELECT default_version FROM pg_available_extensions WHERE name = 'sync_outbox'") == "0.2.0"


def test_three_changes_are_sent_and_acked(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1, 10), (2, 20), (3, 30)")

    assert sales.flush() == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}'
    assert [change["data"] for change in receiver.changes] == [
        {"id": 1, "qty": 10, "note": None}, {"id": 2, "qty": 20, "note": None}, {"id": 3, "qty": 30, "note": None}]
    assert sales.outbox() == []
