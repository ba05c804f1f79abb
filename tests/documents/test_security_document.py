"""docs/security.md names tests, and they exist."""

import re

import pytest

from support.document import Document, code
from support.prefix import PROJECT

SECURITY = Document("docs/security.md")
ROWS = [row for heading in re.findall(r"^## (.*)$", SECURITY.text, re.M) for row in SECURITY.tables(heading)]
NAMED = sorted({name for *_, shown in ROWS for name in code(shown) if "::" in name})


def test_it_names_tests():
    assert len(NAMED) > 40


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name):
    *module, test = name.split("::")
    if module[0].endswith(".py"):
        [path] = (PROJECT / "tests").rglob(module[0])
    else:
        crate = PROJECT / "crates" / module[0] / "src"
        root, module = (crate, module[1:]) if crate.exists() else (PROJECT / "src", module)
        path = root.joinpath(*module).with_suffix(".rs")
    assert re.search(rf"\b(def|fn) {test}\(", path.read_text("utf-8")), path


def test_every_row_is_shown_by_something():
    assert [threat for threat, _, shown in ROWS if not code(shown)] == []
