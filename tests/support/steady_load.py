"""A writer that never stops."""

import contextlib
import threading


@contextlib.contextmanager
def steady_load(database, table="sales", every=0.002):
    """A writer that commits again and again until the block ends; hands over a function that counts its commits."""
    stop, written = threading.Event(), []
    session = database.session()

    def write():
        while not stop.is_set():
            session.execute(f"INSERT INTO {table} VALUES (%s, 0)", [1000 + len(written)])
            written.append(None)
            stop.wait(every)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield lambda: len(written)
    finally:
        stop.set()
        thread.join()
