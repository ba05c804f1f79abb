#!/usr/bin/python3
"""Finds names in our SQL that search_path decides about: operators, functions and types without a schema.

Whoever can put a schema in front could have them mean something else, and run as whom the SQL runs. So operators are
written OPERATOR(pg_catalog.=), functions pg_catalog.now(), types after :: pg_catalog.text unless the grammar itself
knows them. Looked at are the string literals of Rust files that look like SQL, and SQL files, dollar-quoted bodies
included. Unit tests are left out.

    scripts/check-sql.py src/hub sql/sync_outbox--0.2.0.sql    (directories and files; status 1 if there is anything)
"""

import pathlib
import re
import sys

# What the grammar resolves itself, whatever search_path says.
TYPES = set("""bigint bit boolean char character dec decimal double float int integer interval national nchar
    numeric precision real setof smallint time timestamp varchar""".split())
CONSTRUCTS = set("""all any array as and asc by cast check coalesce collate conflict default desc do else end except
    exclude excluded execute exists extract filter first from function generated greatest group grouping grant
    having identity if in include insert intersect into is join key last lateral least left like limit materialized
    not null nulls of offset on only operator or order outer over overlay partition perform position primary
    procedure range recursive references returning revoke returns right row rows select set sets some table then
    trigger treat trim union unique update using values view when where window with within current_user session_user
    user localtimestamp current_timestamp constraint nothing delete raise loop while case distinct inner cross full
    natural return notify columns xmlelement""".split()) | TYPES
# After these words (or a closing bracket) a name with a bracket is no call: a table with columns, an alias.
NO_CALL_AFTER = {"into", "as", "table", "references", "index", "with", "recursive", "constraint", "procedure",
                 "function", "exists", "type", "cast", "update", "copy", "only", "policy", "trigger", "extension"}
# After these words a string is no literal of a type.
SAYING = {"is", "notice", "warning", "exception", "info", "log", "debug", "comment", "language", "end", "echo",
          "default", "values", "escape", "null", "and", "or", "zone", "version", "schema", "execute", "label", "add",
          "before", "after", "both", "leading", "trailing"}
# What RAISE .. USING can give a value.
RAISED = {"message", "detail", "hint", "errcode", "column", "constraint", "datatype", "table", "schema"}
# After these (or an operator) a minus belongs to the number that follows, and a star stands for all columns.
SIGN_AFTER = set(""", ( [ := => select when then else and or not return limit offset by default minvalue maxvalue
    increment with""".split()) | {""}
ALL_AFTER = set(". ( , select distinct all returning".split()) | {""}
# Words that resolve an operator by its name.
OPERATOR_WORDS = {"like", "ilike", "between", "nullif"}

TOKEN = re.compile(r"""
    (?P<space>\s+|--[^\n]*|/\*.*?\*/)
  | (?P<string>[Ee]'(?:[^'\\]|\\.|'')*'|[BbXxNn]?'(?:[^']|'')*')
  | (?P<dollar>\$(?:[A-Za-z_]\w*)?\$)
  | (?P<parameter>\$\d+)
  | (?P<name>"(?:[^"]|"")*"|[A-Za-z_\x80-\U0010ffff][\w$]*|@extschema(?::\w+)?@|@(?=\.)|\{[^{}]*\})
  | (?P<number>\d[\w.]*)
  | (?P<cast>::|:=|\.\.)
  | (?P<operator>[-+*/<>=~!@\#%^&|`?]+)
  | (?P<other>.)""", re.X | re.S)

# A literal of Rust that is SQL or a part of it. Keywords are written large in ours.
SQL = re.compile(r"\$\d|@\.\w|\b(?:interval|timestamp|timestamptz) '|\b(SELECT|INSERT INTO|UPDATE|DELETE FROM"
                 r"|WHERE|FROM|JOIN|ORDER BY|VALUES|ON CONFLICT|CREATE|ALTER|TRUNCATE|LOCK TABLE|IS NULL|IS NOT"
                 r"|EXISTS|FOR SHARE|LIMIT|OVER|CASE|DISTINCT|AND|OR|SET)\b"
                 r"|\b[a-z)]\w*::[a-z]|\b[a-z]\w*\.\w+ (=|<>|<|>|<=|>=) ")


def tokens(sql):
    """(kind, text, position) of what is not space; a qualified operator is one token of its own kind."""
    position = 0
    while position < len(sql):
        qualified = re.compile(r"OPERATOR\s*\(\s*[^()\s]+\.[^()\s]+\s*\)", re.I).match(sql, position)
        if qualified:
            yield "qualified", qualified[0], position
            position = qualified.end()
            continue
        match = TOKEN.match(sql, position)
        kind, text = match.lastgroup, match[0]
        if kind not in ("space", "dollar"):
            yield kind, text, position
        position = match.end()


def check(sql):
    """(position, what is wrong) of everything that search_path decides about."""
    all_tokens = list(tokens(sql))
    words = [text.lower() if kind == "name" and not text.startswith('"') else text for kind, text, _ in all_tokens]
    options = [False]  # whether each open bracket holds options, as in WITH (fillfactor = 100)
    brackets = []  # where they were opened
    opened = 0  # where the one that was closed last had been opened
    in_set = []  # depths at which a SET list is open
    raising = ""  # RAISE, or its USING list

    def word(i):
        return words[i] if 0 <= i < len(words) else ""

    def kind(i):
        return all_tokens[i][0] if 0 <= i < len(all_tokens) else ""

    for i, (what, text, position) in enumerate(all_tokens):
        this = words[i]
        if text in ("(", "["):
            brackets.append(i)
            options.append(text == "(" and word(i - 1) in ("with", "set", "reset"))
        elif text in (")", "]"):
            if len(options) > 1:
                options.pop()
                opened = brackets.pop()
            while in_set and in_set[-1] > len(options):
                in_set.pop()
        elif what == "name" and this == "set":
            in_set.append(len(options))
        elif text == ";":
            in_set.clear()
        elif what == "name" and in_set and in_set[-1] == len(options) and this in (
                "where", "from", "returning", "select", "begin", "as", "language"):
            in_set.pop()

        if text == ";" or what == "name" and this == "raise":
            raising = this
        elif raising and what == "name" and this == "using":
            raising = this

        if what == "operator":
            if text == "=>":
                continue
            if text == "*" and word(i - 1) in ALL_AFTER:
                continue
            # A plus, and a minus before a cast, is an operator after all.
            if text == "-" and kind(i + 1) == "number" and word(i + 2) != "::" and (
                    word(i - 1) in SIGN_AFTER or kind(i - 1) in ("qualified", "operator")):
                continue
            if text == "=" and options[-1]:
                continue
            # RAISE .. USING HINT = ..
            if text == "=" and raising == "using" and word(i - 1) in RAISED and word(i - 2) in ("using", ","):
                continue
            # SET a = 1, b = 2, and SET (a, b) = (..)
            target = opened if word(i - 1) == ")" else i - 3 if word(i - 2) == "." else i - 1
            if text == "=" and in_set and in_set[-1] == len(options) \
                    and word(target - 1) in ("set", ",", "local", "session"):
                continue
            yield position, f"operator {text}"
        elif what == "name" and this in OPERATOR_WORDS:
            if this == "like" and word(i - 1) in ("(", ","):
                continue  # CREATE TABLE (LIKE another)
            yield position, text
        elif what == "name" and this == "similar" and word(i + 1) == "to":
            yield position, "SIMILAR TO"
        elif what == "name" and this == "in" and (word(i + 1) == "(" or word(i + 1).startswith("{")):
            yield position, "IN (..)"
        elif what == "name" and this == "distinct" and word(i + 1) == "from":
            yield position, "IS DISTINCT FROM"
        elif what == "name" and this == "using" and word(i + 1) == "(":
            yield position, "USING (..)"
        elif what == "name" and this == "natural":
            yield position, "NATURAL JOIN"
        elif what == "name" and this == "case" and word(i + 1) != "when" and word(i - 1) != "end":
            yield position, "CASE x WHEN"
        elif what == "name" and this in ("any", "all", "some") and word(i + 1) == "(" \
                and kind(i - 1) not in ("qualified", "operator"):
            yield position, f"{text} with a bare operator"
        elif what == "name" and word(i + 1) == "(" and this not in CONSTRUCTS and not text.startswith("{"):
            if word(i - 1) == "on" and "index" in (word(i - 2), word(i - 3)):
                continue  # CREATE INDEX i ON t (a)
            if word(i - 1) == "." or word(i - 1) in NO_CALL_AFTER or word(i - 1) in (")", "]") or word(i - 2) == ".":
                continue
            yield position, f"function {text}"
        # timestamptz '2000-01-01', but not AS 'body' and what RAISE and COMMENT .. IS say
        elif what == "name" and kind(i + 1) == "string" and this not in CONSTRUCTS | SAYING and word(i - 1) != "." \
                and not text.startswith("{"):
            yield position, f"type {text}"
        elif what == "name" and this == "collate" and word(i + 2) != ".":
            yield position, "COLLATE"
        elif what == "name" and this == "cast" and word(i + 1) == "(":
            yield position, "CAST (..)"
        elif text == "::" and kind(i + 1) == "name" and word(i + 1) not in TYPES and word(i + 2) != "." \
                and not word(i + 1).startswith("{"):
            yield position, f"type {all_tokens[i + 1][1]}"


RUST = re.compile(r"""
    (?P<comment>//[^\n]*|/\*.*?\*/)
  | (?P<raw>b?r(?P<hashes>\#*)".*?"(?P=hashes))
  | (?P<string>[bc]?"(?:[^"\\]|\\.)*")
  | (?P<char>b?'(?:[^'\\\n]|\\(?:x[0-9A-Fa-f]{2}|u\{[0-9A-Fa-f_]+\}|[^\n]))')""", re.X | re.S)
# What is said to people is typed by them, with the search_path that they have.
SAID = re.compile(r"(\.(hint|detail)\(\s*(format!\(\s*)?|\bconst HINT: &str = )$")


def literals(source):
    """The string literals of a Rust file outside its unit tests, each with its position; escapes are taken out in
    place."""
    end = source.find("#[cfg(test)]\nmod tests")
    for match in RUST.finditer(source, 0, end if end >= 0 else len(source)):
        if SAID.search(source, max(0, match.start() - 200), match.start()):
            continue
        if match["raw"]:
            start = match[0].index('"') + 1
            yield match.start() + start, match[0][start:len(match[0]) - 1 - len(match["hashes"])]
        elif match["string"]:
            start = match[0].index('"') + 1
            # Of the same length, so that positions stay right.
            text = re.sub(r'\\(.)', lambda m: " " + (m[1] if m[1] in "\"'\\" else " "), match[0][start:-1], flags=re.S)
            yield match.start() + start, text


def findings(path):
    source = path.read_text("utf-8")
    if path.suffix == ".sql":
        parts = [(0, source)]
    else:
        parts = [(at, text) for at, text in literals(source) if SQL.search(text)]
    for at, text in parts:
        for position, what in check(text):
            start = at + position
            line = source.count("\n", 0, start) + 1
            yield line, what, source.splitlines()[line - 1].strip()


def main():
    paths = []
    for argument in sys.argv[1:]:
        path = pathlib.Path(argument)
        if not path.exists():
            sys.exit(f"{argument} does not exist")
        paths += sorted(p for p in path.rglob("*") if p.suffix in (".rs", ".sql")) if path.is_dir() else [path]
    count = 0
    for path in paths:
        if path.name == "sync_outbox--0.1.0.sql":
            continue  # frozen
        for line, what, text in findings(path):
            print(f"{path}:{line}: {what}: {text}")
            count += 1
    if count:
        sys.exit(f"{count} names that search_path decides about: write the schema")


if __name__ == "__main__":
    main()
