#!/usr/bin/python3
"""Checks that no line is longer than 120 columns: scripts/check-lines.py.

Looked at are the sources in Rust and their SQL, comments included, the scripts and other tools in Python, and the text
of the documents. What cannot be broken well may be longer: SQL and messages inside of strings, tables, fenced blocks
and headings of documents. Released SQL scripts stay as they are."""

import ast
import pathlib
import re
import subprocess
import sys

PROJECT = pathlib.Path(__file__).resolve().parents[1]
MOST = 120
# In a line of Rust or SQL: it is, or is in, a string or a statement.
STRING = re.compile(r'"|\bpg_catalog\b|@\.sync_outbox|^\s*(?!--)[^/]*\'')

# In a string of Python: it is a statement.
PYTHON_SQL = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|VALUES) ")


def tracked(*patterns):
    listing = ["git", "ls-files", *patterns]
    names = subprocess.run(listing, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [PROJECT / name for name in names.splitlines()]


def sources():
    for path in tracked("*.rs", "sql/*.sql"):
        if path.name.endswith("0.1.0.sql"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            is_comment = re.match(r"\s*(//|--)", line)
            if len(line) > MOST and (is_comment or not STRING.search(line)):
                yield path, number


def tools():
    for path in tracked("scripts/*.py", "bench/*.py", "demo/*.py"):
        text = path.read_text()
        strings = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant | ast.JoinedStr)]
        # The lines of those that hold SQL.
        sql = {number for node in strings if PYTHON_SQL.search(ast.get_source_segment(text, node))
               for number in range(node.lineno, node.end_lineno + 1)}
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > MOST and number not in sql:
                yield path, number


def documents():
    for path in tracked("*.md"):
        fenced = False
        for number, line in enumerate(path.read_text().splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            if len(line) > MOST and not fenced and not line.lstrip().startswith(("|", "#", "```")):
                yield path, number


def main():
    long = [*sources(), *tools(), *documents()]
    for path, number in long:
        print(f"{path.relative_to(PROJECT)}:{number} is longer than {MOST} columns", file=sys.stderr)
    return 1 if long else 0


if __name__ == "__main__":
    sys.exit(main())
