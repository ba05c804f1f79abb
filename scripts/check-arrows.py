#!/usr/bin/python3
"""Checks that all arrows between the modules of src/ go down: scripts/check-arrows.py.

The order of the layers stands in docs/design.md, in the block below "Layers". A module uses those in the layers below its own, and
those of its own folder. Between files there is no circle, within a folder neither. Tests are not looked at."""

import pathlib
import re
import sys

PROJECT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = PROJECT / "src"


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


def module_of(path):
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return parts[:-1] if parts[-1] in ("mod", "lib") else parts


def uses(path, files):
    """The files that a file names, in `use` and elsewhere."""
    text = without_tests_and_comments(path.read_text())
    paths = [p for statement in re.findall(r"\buse\s+([^;]+);", text) for p in expanded(re.sub(r"\s+", " ", statement))]
    paths += re.findall(r"\b(?:crate|super)(?:::\w+)+", re.sub(r"\buse\s+[^;]+;", "", text))
    for name in paths:
        parts = name.split(" as ")[0].strip().split("::")
        if parts[0] not in ("crate", "super", "self"):
            continue
        place = [] if parts[0] == "crate" else list(module_of(path))
        while parts and parts[0] in ("crate", "super", "self"):
            if parts.pop(0) == "super":
                place.pop()
        full = tuple(place + parts)
        found = next((files[full[:n]] for n in range(len(full), 0, -1) if full[:n] in files), None)
        if found and found != path:
            yield found


def circles(edges):
    """Files that use each other, directly or through others."""
    reached = {}
    for start in edges:
        seen, todo = set(), list(edges[start])
        while todo:
            file = todo.pop()
            if file not in seen:
                seen.add(file)
                todo += edges[file]
        reached[start] = seen
    return sorted({tuple(sorted(other for other in reached[file] if file in reached[other])) for file in edges if file in reached[file]})


def main():
    files = {module_of(path): path for path in SOURCES.rglob("*.rs")}
    edges = {path: set(uses(path, files)) for path in files.values()}
    order, wrong = layers(), []
    for path, used in edges.items():
        # A folder's mod.rs says what its files are; they may use what stands in it.
        for other in used:
            above, below = module_of(path)[:1], module_of(other)[:1]
            if above == below or not above or not below:
                continue
            for name in (*above, *below):
                if name not in order:
                    wrong.append(f"{name} stands in no layer")
            if order.get(above[0], 0) >= order.get(below[0], 0):
                wrong.append(f"{path.relative_to(PROJECT)} uses {other.relative_to(PROJECT)}, which stands no lower")
    inner = {path: {other for other in used if other.name not in ("mod.rs", "lib.rs")} for path, used in edges.items()}
    wrong += ["a circle: " + ", ".join(str(file.relative_to(PROJECT)) for file in circle) for circle in circles(inner)]
    for line in sorted(set(wrong)):
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
