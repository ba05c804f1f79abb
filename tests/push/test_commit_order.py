"""The order of a key holds when transactions commit in another order than they drew their ids."""

from support import behaviours
from support.ledger import Ledger
from support.wait import wait_for


def order_of(receiver, row):
    return [change["op"] for change in receiver.changes if change["pk"] == {"id": row}]


def test_invariant_11_a_change_that_commits_late_is_not_overtaken_by_the_next_of_its_key(sales, receiver):
    sales.server.set(sync_outbox__batch_rows=1)
    late = sales.session(autocommit=False)
    late.execute("INSERT INTO sales VALUES (1, 1)")  # draws the first id
    sales.run("INSERT INTO sales SELECT n FROM generate_series(2, 6) n")
    ack = receiver.behaviour

    def meanwhile(request, wire):
        if request.number == 2:  # the cursor stands behind the first id
            late.commit()
            late.execute("UPDATE sales SET qty = 2 WHERE id = 1")
            late.commit()
        ack(request, wire)
    receiver.behaviour = meanwhile
    sales.flush()
    sales.flush()

    assert order_of(receiver, 1) == ["INSERT", "UPDATE"]
    assert sales.outbox() == []


def test_an_earlier_change_does_not_wait_for_a_later_one_in_conflict(sales, receiver):
    sales.run("INSERT INTO sales VALUES (1, 1)")
    sales.run("UPDATE sales SET qty = 2 WHERE id = 1")
    sales.run("DELETE FROM sales")
    sales.run("UPDATE sync_outbox SET status = 'CONFLICT' WHERE op = 'UPDATE'")
    sales.flush()

    assert order_of(receiver, 1) == ["INSERT"]
    assert [(change.op, change.status) for change in sales.outbox()] == [("UPDATE", "CONFLICT"), ("DELETE", "PENDING")]


def test_invariant_18_a_table_with_very_many_parked_keys_waits_as_a_whole_and_says_so(sales, receiver):
    """Memory stays bounded: above 100,000 keys even a new key of that table waits, and other tables do not."""
    sales.run("CREATE TABLE customers (id int PRIMARY KEY)")
    sales.attach("customers")
    sales.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 100001) n")
    sales.run("UPDATE sync_outbox SET status = 'DEAD'")
    sales.run("INSERT INTO sales VALUES (0, 0)")
    sales.run("INSERT INTO customers VALUES (1)")
    warnings = []
    sales.conn.add_notice_handler(lambda notice: warnings.append((notice.severity, notice.message_primary)))

    answer = sales.flushed()

    assert [change["table"] for change in receiver.changes] == ["customers"]
    assert answer["blocked"] == 1
    assert warnings == [("WARNING", 'more than 100000 keys of "public"."sales" are parked: the whole table waits for them')]
    sales.run("UPDATE sync_outbox SET status = 'FAILED', next_attempt_at = now() + interval '1 hour' WHERE id % 2 = 0 AND status = 'DEAD'")
    sales.run("SELECT sync_outbox_requeue()")
    sales.run("CALL sync_outbox_drain()")
    assert sales.outbox() == []
    assert len(Ledger(receiver.requests).rows("sales")) == 100002


def test_a_change_that_is_free_again_is_not_overtaken_before_the_worker_is_told(live, receiver):
    """The worker reads from behind what waits for a person. Whoever frees it may not have told the worker yet, or, as here,
    never does: what comes later of its key still goes after it."""
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.attach("sales")
    receiver.behaviour = behaviours.conflict(lambda change: change["pk"]["id"] == 1)
    live.run("INSERT INTO sales VALUES (1, 1)")
    wait_for(lambda: live.outbox("status = 'CONFLICT'"))
    live.run("UPDATE sales SET qty = 2 WHERE id = 1")
    for other in range(2, 12):  # the worker's mark follows
        live.run("INSERT INTO sales VALUES (%s, 1)", [other])
        wait_for(lambda: len(live.outbox()) == 2)
    receiver.behaviour = behaviours.ack_all

    live.run("UPDATE sync_outbox SET status = 'PENDING' WHERE status = 'CONFLICT'")
    live.run("INSERT INTO sales VALUES (12, 1)")
    wait_for(lambda: live.outbox() == [], 30)
    assert order_of(receiver, 1) == ["INSERT", "INSERT", "UPDATE"]
