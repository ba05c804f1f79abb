"""docs/reliability.md names tests: all of them exist, and every fault of the soak and every hard fact has its row."""

import re

from support.document import Document
from support.prefix import PROJECT
from support.soak.soak import FAULTS

DOCUMENT = Document("docs/reliability.md")
TESTS = {name for path in (PROJECT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}


def test_every_test_that_is_named_exists():
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.text))

    assert len(named) > 50
    assert named - TESTS == set()


def test_every_hard_fact_has_a_row():
    rows = {int(row[0]): row[2] for row in DOCUMENT.tables("The hard facts")}

    assert list(rows) == list(range(1, 30))
    assert {fact for fact, tests in rows.items() if f"`test_hard_fact_{fact:02d}_" not in tests} == set()


def test_every_fault_of_the_soak_is_listed():
    listed = {row[0] for row in DOCUMENT.tables("The long soak")}

    assert {fault for faults in FAULTS.values() for fault in faults} - listed == set()


def test_every_open_defect_has_a_test():
    lines = (PROJECT / "tests" / "open_defects.txt").read_text().splitlines()
    assert {line.partition("[")[0] for line in lines if line and not line.startswith("#")} - TESTS == set()


def test_every_defect_has_a_row_and_a_test():
    rows = {int(cells[0]) for cells in DOCUMENT.tables("What two hostile readers broke in 0.1.0") if cells[0].isdigit()}
    assert rows == set(range(1, 25))
    assert {number for number in rows if not any(name.startswith(f"test_defect_{number:02d}_") for name in TESTS)} == set()
