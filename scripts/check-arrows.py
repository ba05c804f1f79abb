#!/usr/bin/python3
"""Checks that all arrows between the modules go down: scripts/check-arrows.py.

The order of the layers of src/ stands in docs/design.md, in the block below "Layers". A module uses those in the layers
below its own, and those of its own folder. In src/ and in every crate, no files or folders that stand side by side form
a circle; what a folder's files use counts as used by the folder. A folder's mod.rs and its files may use each other.
Tests are not looked at."""

import pathlib
import re
import sys

PROJECT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = PROJECT / "src"
CRATES = sorted(PROJECT.glob("crates/*/src"))
USE = re.compile(r"(\bpub(?:\([^)]*\))?\s+)?\buse\s+([^;]+);")


def layers():
    """{module: number of its layer}; the highest is 0."""
    block = re.search(r"^#+ Layers\n.*?^```\n(.*?)^```", (PROJECT / "docs/design.md").read_text(), re.M | re.S)[1]
    # Names stand in the first column, which is as wide as that of the last line.
    width = re.match(r"\w+ +", block.splitlines()[-1]).end()
    return {name: number for number, line in enumerate(block.splitlines()) for name in line[:width].split()}


def without_tests_and_comments(text):
    text = text.partition("#[cfg(test)]\nmod tests")[0]
    return re.sub(r"//[^\n]*", "", text)


def expanded(path):
    """The paths that a path with braces stands for."""
    match = re.fullmatch(r"([^{]*)\{(.*)\}", path.strip(), re.S)
    if not match:
        return [path.strip()]
    before, inside = match.groups()
    paths, depth, part = [], 0, ""
    for character in inside + ",":
        if character == "," and depth == 0:
            paths += [before + rest for rest in expanded(part)] if part.strip() else []
            part = ""
            continue
        depth += (character == "{") - (character == "}")
        part += character
    return paths


def imports(text):
    """[(whether it is handed on, path, name that it gets here)] of all `use` statements."""
    return [(bool(public), path.partition(" as ")[0].strip(), path.rpartition(" as ")[2].split("::")[-1].strip())
            for public, statement in USE.findall(text) for path in expanded(re.sub(r"\s+", " ", statement))]


class Sources:
    """The files below a folder that is the root of a crate, by the paths of their modules."""

    def __init__(self, root):
        self.root = root
        self.files = {self.module_of(path): path for path in root.rglob("*.rs")}
        self.texts = {path: without_tests_and_comments(path.read_text()) for path in self.files.values()}
        # What a module hands on is used where it stands: {path of a name: path that stands for it}.
        self.handed_on = {}
        for module, path in self.files.items():
            for public, name, here in imports(self.texts[path]):
                full = self.absolute(name, module, self.children(module))
                if public and full:
                    self.handed_on[(*module, here)] = full

    def module_of(self, path):
        parts = path.relative_to(self.root).with_suffix("").parts
        return parts[:-1] if parts[-1] in ("mod", "lib") else parts

    def children(self, module):
        """{name: path} of the modules in a module."""
        return {full[-1]: full for full in self.files if full and full[:-1] == module}

    def absolute(self, name, module, known):
        """The path of what is called so in a module; None if it is not of this crate."""
        first, *parts = name.split("::")
        if first in known:
            return (*known[first], *parts)
        if first not in ("crate", "super", "self"):
            return None
        place = [] if first == "crate" else list(module[:-1] if first == "super" else module)
        while parts and parts[0] in ("super", "self"):
            if parts.pop(0) == "super":
                place.pop()
        return (*place, *(part for part in parts if part != "self"))

    def file_of(self, full):
        """The file that a path leads to."""
        for _ in range(10):  # names that are handed on by each other have an end
            length = next((n for n in range(len(full), 0, -1) if full[:n] in self.handed_on), 0)
            if not length or full[:length] in self.files:
                break
            full = (*self.handed_on[full[:length]], *full[length:])
        return next((self.files[full[:n]] for n in range(len(full), 0, -1) if full[:n] in self.files), None)

    def uses(self, path):
        """The files that a file names: in `use`, by a whole path, and by a path through a module that it imports."""
        module, text = self.module_of(path), self.texts[path]
        known, found = self.children(module), set()
        for _, name, here in imports(text):
            full = self.absolute(name, module, known)
            if full is None:
                continue
            if full[-1:] == ("*",):
                full = full[:-1]
                known |= self.children(full)
            else:
                known[full[-1] if here == "self" and full else here] = full
            found.add(full)
        rest = USE.sub("", text)
        found |= {self.absolute(name, module, known) for name in re.findall(r"(?<![\w:])\w+(?:::\w+)+", rest)}
        return {self.file_of(full) for full in found if full} - {None, path}


def circles(edges):
    """Those that use each other, directly or through others."""
    reached = {}
    for start in edges:
        seen, todo = set(), list(edges[start])
        while todo:
            file = todo.pop()
            if file not in seen:
                seen.add(file)
                todo += edges[file]
        reached[start] = seen
    in_circles = [file for file in edges if file in reached[file]]
    return sorted({tuple(sorted(other for other in reached[file] if file in reached[other])) for file in in_circles})


def side_by_side(edges):
    """The same arrows between what stands in one folder: {file or folder: those beside it that it uses}."""
    beside = {}
    for path, used in edges.items():
        for other in used:
            folder = next(folder for folder in path.parents if folder in other.parents)
            above, below = (folder / file.relative_to(folder).parts[0] for file in (path, other))
            beside.setdefault(above, set())
            beside.setdefault(below, set())
            if not {above.name, below.name} & {"mod.rs", "lib.rs"}:
                beside[above].add(below)
    return beside


def upward(sources, edges):
    """What is wrong with the arrows between the modules of src/."""
    order = layers()
    for path, used in edges.items():
        for other in used:
            above, below = sources.module_of(path)[:1], sources.module_of(other)[:1]
            if above == below or not above or not below:
                continue
            for name in (*above, *below):
                if name not in order:
                    yield f"{name} stands in no layer"
            if order.get(above[0], 0) >= order.get(below[0], 0):
                yield f"{path.relative_to(PROJECT)} uses {other.relative_to(PROJECT)}, which stands no lower"


def main():
    wrong = set()
    for root in [SOURCES, *CRATES]:
        sources = Sources(root)
        edges = {path: sources.uses(path) for path in sources.files.values()}
        if root == SOURCES:
            wrong |= set(upward(sources, edges))
        for circle in circles(side_by_side(edges)):
            wrong.add("a circle: " + ", ".join(str(path.relative_to(PROJECT)) for path in circle))
    for line in sorted(wrong):
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
