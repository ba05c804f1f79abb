"""Ids that begin again below those that the worker has been through."""

from support import behaviours
from support.wait import wait_for


def test_a_new_id_equal_to_one_that_is_out(prioritised, receiver):
    """TRUNCATE .. RESTART IDENTITY while a request is out."""
    receiver.behaviour = behaviours.slow(1)
    prioritised.run("INSERT INTO urgent VALUES (1, 0)")
    receiver.wait_for_requests(1)
    prioritised.run("TRUNCATE sync_outbox RESTART IDENTITY")
    prioritised.run("INSERT INTO urgent VALUES (2, 0)")
    receiver.wait_for_requests(2, 5)


def test_defect_09_ids_that_begin_again_are_sent_in_their_order(shop, receiver):
    """TRUNCATE .. RESTART IDENTITY below the ids that the worker has been through; the first changes of a key are
    committed by a transaction of their own."""
    shop.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 7) n")
    wait_for(lambda: shop.outbox() == [])
    shop.run("TRUNCATE sync_outbox RESTART IDENTITY")
    sent = len(receiver.changes)
    for qty in range(1, 15):
        shop.run("UPDATE sales SET qty = %s WHERE id = 1", [qty])
    wait_for(lambda: shop.outbox() == [], 5)
    assert [change["data"]["qty"] for change in receiver.changes[sent:]] == list(range(1, 15))
