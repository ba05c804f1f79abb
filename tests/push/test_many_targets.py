"""Targets know nothing of each other: one that is flooded, hangs, or has many dead changes delays no other."""

import json
import time

from support import behaviours
from support.queued import dead_beside_another_target, longest_wait_of_another_target
from support.steady_load import steady_load
from support.wait import wait_for


def test_defect_01_a_second_target_is_served_beside_a_flooded_one(shop, receiver, new_receiver, clock):
    other = new_receiver()
    shop.run("INSERT INTO sync_outbox_target (name, base_url) VALUES ('other', %s)", [other.url])
    shop.run("SELECT sync_outbox_set_token('t0ken', 'other')")
    shop.run("CREATE TABLE notes (id int PRIMARY KEY, qty int)")
    shop.attach("notes", target="other")
    receiver.behaviour = behaviours.slow(0.05)
    with steady_load(shop):
        wait_for(lambda: len(receiver.requests) > 5)
        for note in range(1, 6):
            with clock(0.5):
                shop.run("INSERT INTO notes VALUES (%s, 0)", [note])
                other.wait_for_requests(note)


def test_defect_01_a_target_that_hangs_delays_no_other(shop, receiver, new_receiver, clock):
    other = new_receiver()
    shop.run("INSERT INTO sync_outbox_target (name, base_url) VALUES ('other', %s)", [other.url])
    shop.run("SELECT sync_outbox_set_token('t0ken', 'other')")
    shop.run("CREATE TABLE notes (id int PRIMARY KEY, qty int)")
    shop.attach("notes", target="other")
    receiver.behaviour = receiver.hang
    shop.run("INSERT INTO sales VALUES (1, 0)")
    receiver.wait_for_requests(1)
    for note in range(1, 6):
        with clock(0.5):
            shop.run("INSERT INTO notes VALUES (%s, 0)", [note])
            other.wait_for_requests(note)
    assert len(receiver.requests) == 1  # two requests of two targets were out at the same time
    receiver.released.set()


def test_an_ack_is_settled_when_the_lock_in_its_way_is_gone(shop, receiver, new_receiver, clock):
    """The step waits for 50 ms and comes again; meanwhile another target goes on."""
    other = new_receiver()
    shop.run("INSERT INTO sync_outbox_target (name, base_url) VALUES ('other', %s)", [other.url])
    shop.run("SELECT sync_outbox_set_token('t0ken', 'other')")
    shop.run("CREATE TABLE notes (id int PRIMARY KEY, qty int)")
    shop.attach("notes", target="other")
    with shop.session(autocommit=False) as holder:
        def lock_its_row(request, wire):
            holder.execute("SELECT FROM sync_outbox WHERE table_name = 'sales' FOR UPDATE")
            behaviours.ack_all(request, wire)
        receiver.script(lock_its_row)
        shop.run("INSERT INTO sales VALUES (1, 0)")
        receiver.wait_for_requests(1)
        for note in range(1, 6):
            with clock(0.5):
                shop.run("INSERT INTO notes VALUES (%s, 0)", [note])
                other.wait_for_requests(note)
        wait_for(lambda: len(shop.outbox()) == 1)
    wait_for(lambda: shop.outbox() == [])
    assert len(receiver.requests) == 1


def test_many_targets(live, receiver, new_receiver):
    """150 targets, of which half hang: one change each is sent at once."""
    good, bad = new_receiver(), new_receiver()
    bad.behaviour = bad.hang
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    for n in range(150):
        url = (bad if n % 2 else good).url
        live.run("SELECT sync_outbox_target_set(%s, %s::json)", [f"t{n}", json.dumps({"base_url": url})])
        live.run("SELECT sync_outbox_set_token(%s, %s)", ["x", f"t{n}"])
        live.run(f"CREATE TABLE s{n} (id int PRIMARY KEY)")
        live.attach(f"s{n}", target=f"t{n}")
    began = time.monotonic()
    for n in range(150):
        live.run(f"INSERT INTO s{n} VALUES (1)")
    wait_for(lambda: len(good.changes) == 75 and len(bad.requests) == 75, 20,
             lambda: f"{len(good.changes)} {len(bad.requests)}")
    print("all out after", time.monotonic() - began)
    began = time.monotonic()
    live.run("INSERT INTO s0 VALUES (2)")
    wait_for(lambda: len(good.changes) == 76, 10)
    print("one more after", time.monotonic() - began)


def test_dead_changes_of_one_target_do_not_hold_up_another(live, receiver, new_receiver):
    """300,000 changes of `default` wait for a person. Whatever is said of any target has the worker walk over them, in
    one step."""
    other = new_receiver()
    dead_beside_another_target(live, receiver, other, "(id int PRIMARY KEY, qty int)",
                               "INSERT INTO sales SELECT n, 0 FROM generate_series(1, 300000) n")
    assert longest_wait_of_another_target(live, other, 5) < 0.3


def test_dead_changes_with_large_values_do_not_hold_up_another_target(live, receiver, new_receiver):
    other = new_receiver()
    dead_beside_another_target(live, receiver, other, "(id int PRIMARY KEY, note text)",
                               "INSERT INTO sales SELECT n, '' FROM generate_series(1, 320) n",
                               "UPDATE sales SET note = repeat(id::text || ' \\ id ', 400000)")
    assert longest_wait_of_another_target(live, other, 4) < 0.3
