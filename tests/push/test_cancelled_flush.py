"""A flush that is cancelled leaves no threads, and sends nothing later."""

import json
import os
import pathlib
import socket
import tempfile
import time

import pytest
from psycopg import errors

from support.process import threads_and_files
from support.wait import wait_for


def full_listener():
    """A socket whose queue is full, so that nobody can connect, and the sockets that fill it: both are to be kept."""
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    filler = [socket.socket() for _ in range(3)]
    for one in filler:
        one.setblocking(False)
        one.connect_ex(full.getsockname())
    return full, filler


def wait_until_its_threads_have_ended(session):
    wait_for(lambda: threads_and_files(session.info.backend_pid)[0] == 1, what="a session of one thread")


def test_a_flush_that_is_cancelled_while_certificates_are_read_sends_nothing_later(sales, receiver, authority):
    """The thread has the request, but no agent yet that could be shut down."""
    fifo = authority.directory / "slow.pem"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    sales.server.set(sync_outbox__ca_file=str(fifo))
    sales.run("INSERT INTO sales VALUES (1, 0)")
    session = sales.session()
    session.execute("SET statement_timeout = '500ms'")
    with pytest.raises(errors.QueryCanceled):
        session.execute("SELECT sync_outbox_flush()")
    session.execute("SET statement_timeout = 0")
    sales.server.set(sync_outbox__ca_file=None)
    sales.run("SELECT sync_outbox_pause()")
    assert receiver.requests == []
    fifo.write_bytes(authority.ca_file.read_bytes())
    wait_until_its_threads_have_ended(session)
    print("requests after the pause:", len(receiver.requests))
    assert receiver.requests == []


def test_a_cancelled_flush_sends_nothing_later(sales, receiver, run, authority):
    """The HTTP thread still reads its certificates when the flush is cancelled, the target paused, and a newer change
    has gone."""
    where = pathlib.Path(tempfile.mkdtemp(dir=run.where))
    where.chmod(0o755)
    fifo = where / "ca"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    sales.run("INSERT INTO sales VALUES (1, 0)")
    sales.server.set(sync_outbox__ca_file=str(fifo))
    with sales.session() as session:
        session.execute("SET statement_timeout = '500ms'")
        try:
            print(session.execute("SELECT sync_outbox_flush()").fetchone())
        except Exception as error:
            print(error)
        assert receiver.requests == []
        sales.server.set(sync_outbox__ca_file=None)
        assert sales.flushed()["acked"] == 1
        sales.run("UPDATE sales SET qty = 1")
        assert sales.flushed()["acked"] == 1
        sales.run("SELECT sync_outbox_pause()")
        with open(fifo, "w") as ca:
            ca.write(authority.ca_file.read_text())
        wait_until_its_threads_have_ended(session)
        print([(c["op"], c["data"]) for c in receiver.changes])
        assert len(receiver.requests) == 2


@pytest.mark.parametrize("how", ["hang", "drip", "connect"])
def test_cancelled_flushes_leave_no_threads(sales, receiver, how):
    full = None
    if how == "hang":
        receiver.behaviour = receiver.hang
    elif how == "drip":
        def drip(request, wire):
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(1000):
                time.sleep(0.01)
                wire.send(b" ")
        receiver.behaviour = drip
    else:
        full, filler = full_listener()
        sales.configure(webapp_base_url=f"http://127.0.0.1:{full.getsockname()[1]}", sync_upload_token="x")
    sales.run("INSERT INTO sales VALUES (1, 0)")
    with sales.session() as session:
        session.execute("SET statement_timeout = '60ms'")
        pid = session.info.backend_pid
        for _ in range(60):
            try:
                session.execute("SELECT sync_outbox_flush()")
            except Exception:
                pass
        after = threads_and_files(pid)
        print(how, after)
        assert after[0] < 10 and after[1] < 60


def test_a_flush_that_waits_for_given_up_threads_ends_in_time(sales, new_receiver):
    """Four cancelled flushes to a target that cannot be connected to, and then one to another target."""
    good = new_receiver()
    full, filler = full_listener()
    sales.configure(webapp_base_url=f"http://127.0.0.1:{full.getsockname()[1]}", sync_upload_token="x")
    sales.run("SELECT sync_outbox_target_set('good', %s::json)", [json.dumps({"base_url": good.url})])
    sales.run("SELECT sync_outbox_set_token('x', 'good')")
    sales.run("CREATE TABLE mine (id int PRIMARY KEY)")
    sales.attach("mine", target="good")
    sales.run("INSERT INTO sales VALUES (1, 0); INSERT INTO mine VALUES (1)")
    with sales.session() as session:
        session.execute("SET statement_timeout = '100ms'")
        for _ in range(5):
            with pytest.raises(errors.QueryCanceled):
                session.execute("SELECT sync_outbox_flush()")
        session.execute("SET statement_timeout = 0")
        sales.server.set(sync_outbox__flush_timeout="1s")
        began = time.monotonic()
        print(session.execute("SELECT sync_outbox_flush(target => 'good')").fetchone())
        took = time.monotonic() - began
        print(took)
        assert took < 2
