"""docs/reliability.md and docs/invariants.md name tests: all of them exist, every fault of the soak has its row, and every
invariant has its number, its place in the code and its tests."""

import re

import pytest

from support.document import Document
from support.prefix import PROJECT
from support.soak.soak import FAULTS

DOCUMENT = Document("docs/reliability.md")
INVARIANTS = Document("docs/invariants.md")
TESTS = {name for path in (PROJECT / "tests").rglob("*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}


def test_every_test_that_is_named_exists():
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.text))

    assert len(named) > 50
    assert named - TESTS == set()


def test_every_fault_of_the_soak_is_listed():
    listed = {row[0] for row in DOCUMENT.tables("The long soak")}

    assert {fault for faults in FAULTS.values() for fault in faults} - listed == set()


def test_every_defect_has_a_row_and_a_test():
    rows = {int(cells[0]) for cells in DOCUMENT.tables("What two hostile readers broke in 0.1.0") if cells[0].isdigit()}
    assert rows == set(range(1, 25))
    assert {number for number in rows if not any(name.startswith(f"test_defect_{number:02d}_") for name in TESTS)} == set()


# The invariants

RULES = {int(number): text for number, text in
         re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", INVARIANTS.text, re.M | re.S)}


def listed(text, label):
    """The code spans of the list item that begins with a label."""
    [item] = re.findall(rf"^- {label}: (.*?)(?=^- |\Z)", text, re.M | re.S)
    return re.findall(r"`([^`]+)`", item)


def test_the_invariants_are_numbered_without_a_gap():
    assert list(RULES) == list(range(1, 30))


@pytest.mark.parametrize("number", RULES)
def test_every_invariant_has_tests_of_its_number(number):
    shown = set(listed(RULES[number], "Shown by"))

    assert shown and shown - TESTS == set()
    # All tests of its number are listed, and nothing else is.
    assert shown == {name for name in TESTS if name.startswith(f"test_invariant_{number:02d}_")}


@pytest.mark.parametrize("number", RULES)
def test_every_invariant_is_kept_somewhere(number):
    kept = listed(RULES[number], "Kept in")

    assert kept and [path for path in kept if not (PROJECT / path).is_file()] == []


def test_what_comments_cite_is_an_invariant():
    sources = [path for place in ("src", "crates", "sql", "bench") for path in (PROJECT / place).glob("**/*")
               if path.suffix in (".rs", ".sql", ".py") and "target" not in path.parts]
    texts = {path: path.read_text("utf-8") for path in sources}
    cited = {int(number) for text in texts.values() for number in re.findall(r"`invariants` (\d+)", text)}

    assert cited and cited <= set(RULES)
