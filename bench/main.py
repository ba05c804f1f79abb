"""Runs the parts that PARTS names, all by default, and prints and writes down a Markdown table for each."""

import os
import pathlib
import signal
import sys
import time

import capture
import drain
import idle
import latency
from machine import describe
from plan import FULL, QUICK
from report import Report, progress
from support import run as runs

PARTS = {"capture": capture, "drain": drain, "latency": latency, "idle": idle}
PROJECT = pathlib.Path(__file__).resolve().parents[1]


def main():
    chosen = os.environ.get("PARTS", "").split() or list(PARTS)
    unknown = set(chosen) - set(PARTS)
    if unknown:
        sys.exit(f"PARTS may name {', '.join(PARTS)}; not {', '.join(sorted(unknown))}")
    plan = QUICK if os.environ.get("QUICK", "0") not in ("", "0") else FULL
    report = Report(pathlib.Path(os.environ.get("REPORT") or PROJECT / "docs" / "performance.md"), plan.name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    began = time.monotonic()
    run = runs.create()
    try:
        report.put("machine", describe(run))
        for name in chosen:
            report.part(name, PARTS[name].measure(run, plan))
            progress(f"\n{name} done, {time.monotonic() - began:.0f} s since the start")
    finally:
        run.close()
        run.remove()
    print(f"\n{plan.name} run of {', '.join(chosen)}: {time.monotonic() - began:.0f} s, written to {report.path}")


main()
