"""scripts/check-arrows.py finds what points up, and circles."""

import shutil
import subprocess

import pytest

from support.prefix import PROJECT


@pytest.fixture
def project(tmp_path):
    """The sources, to be spoilt."""
    for name in ("src", "scripts"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    (tmp_path / "docs").mkdir()
    shutil.copy(PROJECT / "docs/design.md", tmp_path / "docs")
    return tmp_path


def check(project):
    done = subprocess.run([project / "scripts/check-arrows.py"], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_all_arrows_go_down(project):
    assert check(project) == (0, "")


@pytest.mark.parametrize("line", ["use crate::push::report::Report;", "use crate::{\n    error::Error,\n    push::report::Report,\n};",
                                  "use super::super::push;", "fn up() { crate::push::report::x() }"])
def test_an_arrow_that_goes_up(project, line):
    with open(project / "src/store/queue.rs", "r+") as file:
        text = file.read()
        file.seek(0)
        file.write(text.replace("\nuse ", f"\n{line}\nuse ", 1))
    code, said = check(project)
    assert code == 1 and "src/store/queue.rs uses src/push/" in said


def test_a_circle_within_a_folder(project):
    with open(project / "src/store/stats.rs", "r+") as stats, open(project / "src/store/queue.rs", "r+") as queue:
        for file, line in (stats, "use super::queue;"), (queue, "use super::stats;"):
            text = file.read()
            file.seek(0)
            file.write(text.replace("\nuse ", f"\n{line}\nuse ", 1))
    code, said = check(project)
    assert code == 1 and "a circle: src/store/queue.rs, src/store/stats.rs" in said


def test_a_folder_that_stands_nowhere(project):
    (project / "src/attic.rs").write_text("use crate::error::Error;\n")
    assert check(project) == (1, "attic stands in no layer\n")
