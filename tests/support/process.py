"""What the system knows of a process: its memory, time, threads and open files."""

import os
import pathlib
import re

MB = 1 << 20


def _status(pid, member):
    return int(re.search(rf"^{member}:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)[1]) << 10


def peak_memory(pid):
    """The most that it has had in memory at a time, in MiB."""
    return _status(pid, "VmHWM") // MB


def processor_time(pid):
    """The seconds that it has kept a processor busy, however long others have kept it waiting."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def anonymous_memory(pid):
    """What it has in memory that is no file's, in bytes."""
    return _status(pid, "RssAnon")


def threads_and_files(pid):
    """How many it has of both."""
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))
