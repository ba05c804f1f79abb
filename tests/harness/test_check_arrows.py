"""scripts/check-arrows.py finds what points up, and circles."""

import shutil
import subprocess

import pytest

from support.prefix import PROJECT


@pytest.fixture
def project(tmp_path):
    """The sources, to be spoilt."""
    for name in ("src", "crates", "scripts"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    (tmp_path / "docs").mkdir()
    shutil.copy(PROJECT / "docs/design.md", tmp_path / "docs")
    return tmp_path


def check(project):
    done = subprocess.run([project / "scripts/check-arrows.py"], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_all_arrows_go_down(project):
    assert check(project) == (0, "")


def put(project, name, line):
    """Puts a line into a file, before its first import."""
    before = (project / name).read_text()
    after = before.replace("\nuse ", f"\n{line}\nuse ", 1)
    assert after != before
    (project / name).write_text(after)


@pytest.mark.parametrize("line", [
    "use crate::push::report::Report;", "use crate::{\n    error::Error,\n    push::report::Report,\n};",
    "use super::super::push;", "fn up() { crate::push::report::x() }", "use crate::push as p; fn up() { p::report::x() }",
    "use crate as top; fn up() { top::push::report::x() }"])
def test_an_arrow_that_goes_up(project, line):
    put(project, "src/store/queue.rs", line)
    code, said = check(project)
    assert code == 1 and "src/store/queue.rs uses src/push/" in said


@pytest.mark.parametrize("line", [
    "use super::{};", "use crate::store; fn circle() {{ store::{}::x() }}",
    "use crate::store::{{self}}; fn circle() {{ store::{}::x() }}", "use super::super::store as s; use s::{}::X;",
    "use crate::store::*; fn circle() {{ {}::x() }}", "fn circle() {{ super::{}::x() }}"])
def test_a_circle_within_a_folder(project, line):
    put(project, "src/store/stats.rs", line.format("queue"))
    put(project, "src/store/queue.rs", line.format("stats"))
    code, said = check(project)
    assert code == 1 and "a circle: src/store/queue.rs, src/store/stats.rs" in said


def test_a_circle_of_a_file_and_a_folder(project):
    """The file uses the folder's mod.rs, and that uses the file beside it which points back."""
    assert "use super::session::" in (project / "src/push/sender.rs").read_text()
    put(project, "src/push/session/lookup.rs", "use crate::push::sender::Sender;")
    code, said = check(project)
    assert code == 1 and "a circle: " in said and "src/push/sender.rs, src/push/session\n" in said


def test_a_circle_within_a_crate(project):
    assert "use super::backoff;" in (project / "crates/delivery/src/outcome.rs").read_text()
    put(project, "crates/delivery/src/backoff.rs", "use crate::outcome::Outcome;")
    code, said = check(project)
    assert code == 1 and "a circle: " in said and "crates/delivery/src/backoff.rs, " in said


def test_a_circle_through_names_that_a_folder_hands_on(project):
    put(project, "crates/wire/src/body/read.rs", "use super::Outgoing;")
    put(project, "crates/wire/src/body/write.rs", "use crate::body; fn circle() { body::parse() }")
    code, said = check(project)
    assert code == 1 and "a circle: crates/wire/src/body/read.rs, crates/wire/src/body/write.rs" in said


def test_a_folder_that_stands_nowhere(project):
    (project / "src/attic.rs").write_text("use crate::error::Error;\n")
    assert check(project) == (1, "attic stands in no layer\n")
