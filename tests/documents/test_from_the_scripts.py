"""docs/from-the-scripts.md, typed in an old store: the move loses nothing, and every part of the old way is mapped."""

import json
import re
import threading
import uuid

import pytest

from support.database import TOKEN, Database
from support.document import Document, Typist
from support.wait import wait_for

PAGE = Document("docs/from-the-scripts.md")

# What the scripts made: a table, a function, and triggers under both kinds of names.
OLD_STORE = """
CREATE TABLE sales (id int PRIMARY KEY, store text, product text, quantity int);
CREATE TABLE stock_movements (id int PRIMARY KEY, product text, quantity int);
CREATE TABLE public.sync_outbox (
    id bigserial PRIMARY KEY, schema_name text NOT NULL, table_name text NOT NULL, op text NOT NULL, pk jsonb, data jsonb,
    dedup_key text UNIQUE, txid bigint DEFAULT txid_current(), created_at timestamptz DEFAULT now());
CREATE INDEX sync_outbox_created_at ON public.sync_outbox (created_at);
CREATE FUNCTION public.sync_outbox_capture() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    row_now jsonb := CASE TG_OP WHEN 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END;
    key jsonb := jsonb_build_object('id', row_now->'id');
BEGIN
    INSERT INTO public.sync_outbox (schema_name, table_name, op, pk, data, dedup_key)
    VALUES (TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP, key, CASE WHEN TG_OP <> 'DELETE' THEN row_now END,
            md5(TG_TABLE_NAME || key || txid_current()))
    ON CONFLICT (dedup_key) DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER sync_outbox_ins AFTER INSERT ON sales FOR EACH ROW EXECUTE FUNCTION public.sync_outbox_capture();
CREATE TRIGGER sync_outbox_upd AFTER UPDATE ON sales FOR EACH ROW EXECUTE FUNCTION public.sync_outbox_capture();
CREATE TRIGGER sync_outbox_del AFTER DELETE ON sales FOR EACH ROW EXECUTE FUNCTION public.sync_outbox_capture();
CREATE TRIGGER sync_outbox_aiud_stock_movements AFTER INSERT OR UPDATE OR DELETE ON stock_movements
    FOR EACH ROW EXECUTE FUNCTION public.sync_outbox_capture();
"""
# One transaction each: of two changes of one row in one transaction the scripts kept the first.
OLD_WRITES = [
    "INSERT INTO sales VALUES (1, 'S1', 'coffee', 2), (2, 'S2', 'tea', 1)",
    "UPDATE sales SET quantity = 3 WHERE id = 1",
    "DELETE FROM sales WHERE id = 2",
    "INSERT INTO stock_movements VALUES (1, 'coffee', -2)",
]


class Store:
    def __init__(self, database, typist, receiver):
        self.database = database
        self.typist = typist
        self.receiver = receiver

    def type(self, heading):
        """Types the SQL below a heading; returns what psql printed, block by block."""
        return [self.typist.sql(block.text) for block in PAGE.below(heading) if block.language == "sql"]


@pytest.fixture
def old_store(new_server, receiver, tmp_path):
    """A store as the scripts left it, with their two files, on a server that preloads the library."""
    server = new_server(preload=True)
    with server.connect() as admin:
        admin.execute("CREATE DATABASE store")
    database = Database(server, "store")
    for statement in [OLD_STORE, *OLD_WRITES]:
        database.run(statement)
    (tmp_path / "config").mkdir()
    (tmp_path / "backups").mkdir()
    (tmp_path / "config/config.json").write_text(json.dumps({
        "db": {"host": "localhost", "name": "store"}, "webapp_base_url": receiver.url, "sync_upload_token": TOKEN}))
    (tmp_path / "config/sync_tables.json").write_text(json.dumps({
        "uploads_local_to_remote": ["sales", "stock_movements"], "downloads_remote_to_local": ["products"]}))
    typist = Typist(server, tmp_path, "store")
    yield Store(database, typist, receiver)
    typist.close()
    database.close()


def test_the_move(old_store):
    database, receiver = old_store.database, old_store.receiver
    old_keys = [row.dedup_key for row in database.rows("SELECT dedup_key FROM sync_outbox ORDER BY id")]
    assert len(old_keys) == 5

    stop, sold = threading.Event(), []

    def keep_selling(session):
        while not stop.is_set():
            session.execute("INSERT INTO sales VALUES (%s, 'S1', 'cocoa', 1)", [1000 + len(sold)])
            sold.append(1000 + len(sold))
    seller = threading.Thread(target=keep_selling, args=[database.session()])
    seller.start()
    try:
        wait_for(lambda: len(sold) > 20, what="a store that is selling")
        seen, _, _, checked, _ = old_store.type("Moving over")
        wait_for(lambda: len(sold) > 40, what="a store that is selling")
    finally:
        stop.set()
        seller.join()

    assert "stock_movements | sync_outbox_aiud_stock_movements" in seen and "sync_outbox_del, sync_outbox_ins" in seen
    assert "sales" in checked and "HIGH" in checked
    database.run("CALL sync_outbox_drain()")
    wait_for(lambda: database.value("SELECT clean FROM sync_outbox_overview()"), what="a clean queue")

    # Everything once, the old keys among it, the changes of one row in their order.
    keys = [uuid.UUID(change["dedup_key"]).hex for change in receiver.changes]
    assert len(keys) == len(set(keys)) and set(old_keys) <= set(keys)
    assert [c["op"] for c in receiver.changes if c["table"] == "sales" and c["pk"]["id"] in (1, 2)] == [
        "INSERT", "INSERT", "UPDATE", "DELETE"]
    assert sorted(c["pk"]["id"] for c in receiver.changes if c["pk"]["id"] >= 1000) == sold
    assert old_store.database.rows("SELECT FROM pg_namespace WHERE nspname = 'outbox_of_the_scripts'") == []


def test_every_statement_of_the_mapping_runs(old_store):
    old_store.type("Moving over")
    for statement in PAGE.statements():
        if statement != "CREATE EXTENSION sync_outbox":
            old_store.typist.sql(statement + ";")


def test_the_checklist(old_store):
    database, receiver = old_store.database, old_store.receiver
    old_store.type("Moving over")
    old_store.type("Operating offline")
    items = [block.text for block in PAGE.below("The checklist")]
    assert len(items) == 5

    database.run("CALL sync_outbox_drain()")
    wait_for(lambda: database.value(items[0]), what="a clean queue")
    assert database.row(items[1]) == ("on", [])
    database.run("SELECT sync_outbox_detach('stock_movements')")
    assert database.row(items[1]) == ("on", ["stock_movements"])

    receiver.stop()
    database.run("SET sync_outbox.reason = 'sale at the counter'")
    database.run("INSERT INTO sales VALUES (10, 'S1', 'coffee', 1), (11, 'S2', 'tea', 1)")
    assert database.flushed()["error"] == "offline"
    assert database.value(items[0]) is False
    assert database.value(items[2]) == 0
    assert {row.status for row in database.rows("SELECT status FROM sync_outbox_queue")} == {"FAILED"}

    database.server.set(sync_outbox__enabled="off")  # so that the answers are not the worker's
    assert database.value(items[3]) == 2
    assert {(row.status, row.attempt_count) for row in database.rows("SELECT status, attempt_count FROM sync_outbox_queue")} == {
        ("PENDING", 0)}
    receiver.start()
    answers = dict(database.rows(items[4]))
    assert {branch: (answer["ok"], answer["acked"]) for branch, answer in answers.items()} == {"S1": (True, 1), "S2": (True, 1)}
    assert database.value(items[0])


def test_the_log(old_store):
    database = old_store.database
    old_store.type("Moving over")
    database.server.set(sync_outbox__enabled="off")
    database.run("INSERT INTO sales VALUES (20, 'S1', 'coffee', 1), (21, 'S1', 'tea', 1), (22, 'S1', 'tea', 1)")
    (cron,) = [block.text for block in PAGE.blocks if block.language == "crontab"]
    (line,) = [block.text for block in PAGE.below("A log of flushes") if block.language == "json"]
    command = re.fullmatch(r"\S+ \S+ \S+ \S+ \S+ (.*)", cron)[1]
    assert "%" not in command  # cron would make a newline of it

    old_store.typist.sh(command)
    old_store.typist.sh(command)
    log = (old_store.typist.where / "backups/outbox_flush.log").read_text().splitlines()
    assert log == [line, '{"ok": true, "pending": 0, "sent": 0, "acked": 0}']


# Everything that the two old documents name.
OLD_WAYS = """
    public.sync_outbox  sync_outbox_capture()  config/config.json  config/sync_tables.json  uploads_local_to_remote
    scripts/install_outbox_triggers.py  sync_upload_token  SYNC_UPLOAD_TOKEN  webapp_base_url  utils.get_webapp_base_url()
    WEBAPP_BASE_URL  utils.get_sync_upload_token(persist_from_env=True)  scripts/run_outbox_flush_once.py
    scripts\\run_outbox_flush_once.ps1  backups/outbox_flush.log  "ok"  pending  sent  acked  "auth": "missing"  "auth": "invalid"
    POST /sync/run  GET /sync/outbox/stats  SOFTMOBILE_ENABLE_PURCHASES_SALES=1  SOFTMOBILE_ENABLE_TRANSFERS=1
    SOFTMOBILE_ENABLE_HYBRID_PREP=1  printers  backups  /sales  /pos/sale  X-Reason  FAILED  offline  folios
    requeue_failed_outbox_entries  POST /sync/outbox/retry  services/scheduler.py  GET /sync/outbox  PENDING  attempt_count
    error_message  last_attempt_at  GET /sync/history  branch  receipts
"""


@pytest.mark.parametrize("old", re.split(r"\s{2,}", OLD_WAYS.strip()))
def test_the_old_way_is_mapped(old):
    before = [row[0] for row in PAGE.tables("What does it now")]
    assert any(old in cell for cell in before)
