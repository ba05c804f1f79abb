"""make soak: random faults for so many minutes, by a seed. Ends with status 1 if anything was lost, made up, out of order,
or alarming in the server's log; the same seed has the same faults at the same times."""

import argparse
import pathlib
import random
import sys

from support import run as runs
from support.server import Server
from support.soak.soak import PAUSE, Soak
from support.stand import HUB_SETTINGS, SETTINGS


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=60)
    arguments.add_argument("--seed", type=int, default=random.randrange(2 ** 32))
    arguments.add_argument("--pause", type=float, default=PAUSE, help="seconds between two statements of the writer of many rows")
    arguments.add_argument("--keep", action="store_true", help="leave books, log and data behind")
    options = arguments.parse_args()
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)

    run = runs.create()
    soak, failures = None, ["did not end"]
    try:
        server = Server(run, "soak", preload=True, settings=SETTINGS).start()
        hub = Server(run, "soak_hub", settings=HUB_SETTINGS).start()
        books = pathlib.Path(run.where, "books")
        books.mkdir()
        soak = Soak(server, hub, books, options.seed, options.minutes * 60, pause=options.pause)
        soak.run()
        failures = soak.failures
        print(soak.report())
    except AssertionError as error:
        failures = [f"did not end: {error}", *(soak.findings if soak else [])]
    finally:
        run.close()
        if options.keep or failures:
            print(f"kept: {run.where}")
        else:
            run.remove()
    for failure in failures[:50]:
        print("FAILED:", failure[:300])
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
