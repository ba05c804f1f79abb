"""Tables in Markdown, and the file they are kept in.

Of the file only what stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` is written: the rest is by hand,
and a part that did not run keeps its table."""

import datetime
import re
import sys


class Table:
    """A Markdown table; the first column is text, the others are numbers."""

    def __init__(self, *head):
        self.head = head
        self.rows = []

    def add(self, *cells):
        self.rows.append([str(cell) for cell in cells])

    def __str__(self):
        rule = ["---"] + ["---:"] * (len(self.head) - 1)
        return "\n".join(f"| {' | '.join(row)} |" for row in [self.head, rule, *self.rows])


class Goals:
    """What was to be reached, beside what was."""

    def __init__(self):
        self.table = Table("goal", "at least", "reach for", "measured", "")

    def at_most(self, what, limit, reach, value, show="{:.3f}"):
        self._add(what, limit, reach, value, show, lambda bound: value <= bound, "≤ ")

    def at_least(self, what, limit, reach, value, show="{:.3f}"):
        self._add(what, limit, reach, value, show, lambda bound: value >= bound, "≥ ")

    def _add(self, what, limit, reach, value, show, holds, sign):
        bounds = ["–" if bound is None else sign + show.format(bound) for bound in (limit, reach)]
        if reach is not None and holds(reach):
            verdict = "reached"
        elif limit is None:
            verdict = "not reached"
        else:
            verdict = "met" if holds(limit) else "**missed**"
        self.table.add(what, *bounds, show.format(value), verdict)

    def __str__(self):
        return str(self.table)


def ratio(value, of):
    return f"{value / of:.2f}" if of else "–"


def count(value):
    return f"{value:,.0f}"


def progress(text):
    print(text, file=sys.stderr, flush=True)


class Report:
    def __init__(self, path, kind):
        self.path = path
        self.kind = kind

    def part(self, name, blocks):
        """Prints and keeps a part's tables and remarks."""
        day = datetime.date.today().isoformat()
        text = "\n\n".join([f"*{day}, {self.kind} run.*", *map(str, blocks)])
        print(f"\n## {name}\n\n{text}", flush=True)
        self.put(name, text)

    def put(self, name, text):
        opening, closing = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        section = f"{opening}\n{text}\n{closing}"
        page = self.path.read_text(encoding="utf-8") if self.path.exists() else "# Performance\n"
        written, found = re.subn(f"{opening}.*?{closing}", lambda _: section, page, flags=re.DOTALL)
        if not found:
            written = f"{page.rstrip()}\n\n{section}\n"
        self.path.write_text(written, encoding="utf-8")
