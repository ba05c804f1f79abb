"""The machine and the software that a run was taken on."""

import os
import pathlib
import platform

from report import Table
from stage import SETTINGS


def describe(run):
    table = Table("", "")
    table.add("processor", f"{os.cpu_count()} x {_first('/proc/cpuinfo', 'model name')}")
    table.add("memory", f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) / 1024 ** 2:.0f} GiB")
    table.add("kernel", f"{platform.system()} {platform.release()}")
    table.add("load before the run", f"{os.getloadavg()[0]:.1f}")
    table.add("server", run.call("postgres", "--version").strip())
    table.add("settings", ", ".join(f"{name} = {value}" for name, value in SETTINGS.items()))
    return table


def _first(path, name):
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"
