"""A Markdown document taken apart, and a shell and a psql that run what it says."""

import os
import re
import subprocess
import textwrap
import threading

from .prefix import PROJECT

STATEMENT = re.compile(r"(SELECT|CALL|TABLE|SET|ALTER|GRANT|CREATE) .+")
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d(:?\d\d)?)?")


class Block:
    """A fenced block: its language, its text, the headings above it, and the `text` block that follows an SQL block."""

    def __init__(self, path, line, headings, language, text):
        self.path = path
        self.line = line
        self.headings = headings
        self.language = language
        self.text = text
        self.answer = None

    def __str__(self):
        return f"{self.path.name}:{self.line}"


class Document:
    def __init__(self, name):
        self.path = PROJECT / name
        self.text = self.path.read_text("utf-8")
        self.blocks = list(self._blocks())
        for block, answer in zip(self.blocks, self.blocks[1:]):
            if answer.language == "text":
                block.answer = answer.text

    def _blocks(self):
        headings, opened = [], None
        for number, line in enumerate(self.text.splitlines(), 1):
            if opened:
                if line.strip() == "```":
                    yield Block(self.path, opened[0], tuple(headings), opened[1], textwrap.dedent("\n".join(opened[2])))
                    opened = None
                else:
                    opened[2].append(line)
            elif line.strip().startswith("```"):
                opened = (number, line.strip()[3:], [])
            elif heading := re.match(r"(#+) (.*)", line):
                depth = len(heading[1])
                headings = headings[:depth - 1] + [heading[2]]

    def below(self, heading):
        """The blocks below a heading, at any depth."""
        return [block for block in self.blocks if heading in block.headings]

    def section(self, heading):
        """The text below a heading, up to the next one of its depth."""
        found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^\1 |\Z)", self.text, re.M | re.S)
        assert found, f"no heading {heading!r} in {self.path.name}"
        return found[2]

    def statements(self):
        """Every SQL statement that stands in a sentence or a table as code, without those that leave something out."""
        spans = set(re.findall(r"`([^`\n]+)`", self.text))
        return sorted(span for span in spans if STATEMENT.fullmatch(span) and ".." not in span)

    def tables(self, heading):
        """The rows of the tables below a heading, without their heads; a cell's `\\|` is a bar."""
        rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in self.section(heading).splitlines() if line.startswith("|")]
        rows = [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]
        heads = {i - 1 for i, row in enumerate(rows) if all(set(cell) <= set("-: ") for cell in row)}
        return [row for i, row in enumerate(rows) if i not in heads and i - 1 not in heads]


def code(cell):
    """The code spans of a cell."""
    return re.findall(r"`([^`]+)`", cell)


def plain(output):
    """Output without what differs from run to run: times, and the widths of columns that hold them."""
    lines = (TIME.sub("(time)", line) for line in output.strip().splitlines())
    return [re.sub(r"-{2,}", "-", re.sub(r" +", " ", line)).strip() for line in lines]


class Typist:
    """Types what a document says: `sh` into one shell, `sql` into psql, which stays in the database it connected to last.

    `instead` replaces what a reader replaces too: a port that is taken, a directory."""

    def __init__(self, server, where, database="postgres", instead=None):
        self.where = where
        self.database = database
        self.instead = instead or {}
        self.environment = {
            "PATH": f"{server.run.bindir}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", "HOME": str(where),
            "PGHOST": str(server.sockets), "PGUSER": "postgres", "PGTZ": "UTC", "PGOPTIONS": "-c client_min_messages=warning",
        }
        self.bash = subprocess.Popen(["bash", "--norc"], env=self.environment, cwd=where, text=True, stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def close(self):
        """Ends the shell and what it left running."""
        self.bash.stdin.write("trap '' TERM; kill $(jobs -p) 2>/dev/null; wait; exit\n")
        self.bash.stdin.close()
        self.bash.wait(30)
        self.bash.stdout.close()

    def sh(self, text, deadline=60):
        """Runs commands in the one shell; returns their output. A command that fails is an error."""
        stop = threading.Timer(deadline, self.bash.kill)
        stop.start()
        self.bash.stdin.write(f"{{ set -e\n{self.replaced(text)}\nset +e; }} </dev/null; echo :$?:\n")
        self.bash.stdin.flush()
        lines = []
        while (line := self.bash.stdout.readline()) and not re.fullmatch(r":\d+:\n", line):
            lines.append(line)
        stop.cancel()
        output = "".join(lines)
        assert line == ":0:\n", f"{text}\n{output}"
        return output

    def sql(self, text):
        """Runs psql as a person does, headers and footers included; returns what it prints."""
        for connected in re.findall(r"^\\connect (\w+)", text, re.M):
            self.database = connected
        text = re.sub(r"^\\connect \w+\n", "", text, flags=re.M)
        done = subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.database], env=self.environment,
                              cwd=self.where, input=self.replaced(text), text=True, capture_output=True)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def replaced(self, text):
        for before, after in self.instead.items():
            text = text.replace(before, after)
        return text

    def shown(self, text):
        """What the document shows where this is printed."""
        for before, after in self.instead.items():
            text = text.replace(after, before)
        return text
