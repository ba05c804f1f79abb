"""The README, the reference and what operations.md says about offline times are typed as they stand: the quick start,
every other SQL example, and every statement named in a sentence. The reference is compared with the server."""

import re
import socket

import pytest

from support.document import Document, Typist, code, plain
from support.prefix import PROJECT
from support.quick_start import type_and_compare

README = Document("README.md")
REFERENCE = Document("docs/reference.md")
OPERATIONS = Document("docs/operations.md")
WIRE = Document("docs/wire.md")
PAGES = [README, REFERENCE, OPERATIONS, WIRE]
# Documents whose SQL is typed, by this test and by those of operations.md, from-the-scripts.md and upgrading.md.
TYPED = {"README.md", "docs/reference.md", "docs/operations.md", "docs/from-the-scripts.md", "docs/upgrading.md"}
# Shows SQL with a password and a token left out; the tests of the example run its receiver instead.
NOT_TYPED = {"examples/receiver/README.md"}
DOCUMENTS = sorted(str(path.relative_to(PROJECT))
                   for pattern in ("*.md", "docs/*.md", "examples/**/*.md", ".github/**/*.md")
                   for path in PROJECT.glob(pattern))


@pytest.fixture
def typist(new_server, tmp_path):
    """A reader's shell beside the examples, and a preloaded server with nothing in it."""
    server = new_server(preload=True)
    for directory in [tmp_path, *tmp_path.parents[:3]]:
        directory.chmod(directory.stat().st_mode | 0o111)
    (tmp_path / "examples").symlink_to(PROJECT / "examples")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    typist = Typist(server, tmp_path, instead={"127.0.0.1:8080": f"127.0.0.1:{port}"})
    typist.port = port
    yield typist
    typist.close()


@pytest.mark.timeout(120)
def test_it_can_be_typed_from_top_to_bottom(typist):
    """The quick start, then the examples of the reference, then what is typed around an offline time."""
    typed = [block for block in README.blocks
             if block.language == "sql" or (block.language == "sh" and "Quick start" in block.headings)]
    typed += [block for block in REFERENCE.blocks + OPERATIONS.below("Operating offline") if block.language == "sql"]
    assert len(typed) > 15
    for block in typed:
        type_and_compare(typist, block)

    # What sentences and tables tell to type, in the store as the examples have left it.
    statements = sorted({statement for page in PAGES for statement in page.statements()})
    assert len(statements) > 20
    for statement in statements:
        typist.sql(f"\\connect store\n{statement};")


def test_every_sql_block_with_an_answer_shows_it():
    blocks = [block for page in PAGES for block in page.blocks]
    assert [str(block) for block in blocks if block.language == "text" and not block.text.strip()] == []
    assert len([block for block in README.below("Quick start") if block.answer]) >= 4


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_with_sql_is_typed(name):
    assert name in TYPED | NOT_TYPED or not [block for block in Document(name).blocks if block.language == "sql"]


def test_the_readme_is_short_and_lists_every_document():
    assert len(README.text.splitlines()) < 300
    listed = {target for target in re.findall(r"\]\(([^)#\s]+)\)", README.section("Where to read on"))}
    assert {name for name in DOCUMENTS if name.split("/")[0] not in ("README.md", ".github")} - listed == set()


# Settings

UNITS = {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "kB": 1, "MB": 1024}


def base_value(shown, unit):
    """A default as the reference shows it, in the unit of pg_settings."""
    if shown == "empty":
        return ""
    number, word = re.fullmatch(r"(\d+) ?([a-zA-Z]*)", shown).groups() if shown[0].isdigit() else (None, None)
    if number is None or not word:
        return shown
    return str(int(number) * UNITS[word] // UNITS[unit])


def test_settings_are_those_of_the_server(db):
    db.run("LOAD 'sync_outbox'")
    rows = db.rows("SELECT name, boot_val, unit, context FROM pg_settings WHERE name LIKE 'sync\\_outbox.%'")
    server = {row.name: (row.boot_val or "", {"sighup": "reload", "user": "session", "superuser": "session, superuser"}[row.context])
              for row in rows}
    # Hidden from pg_settings.
    server["sync_outbox.upload_token"] = ("", "reload")
    units = {row.name: row.unit for row in rows}

    shown = {code(name)[0]: (base_value(default.strip("`"), units.get(code(name)[0])), when)
             for name, default, when, _ in REFERENCE.tables("Settings")}
    assert shown == server
    # The few that the README shows have the same defaults there.
    few = {code(name)[0]: base_value(default.strip("`"), units.get(code(name)[0]))
           for name, default, _ in README.tables("The settings everybody needs")}
    assert few and few.items() <= {name: default for name, (default, _) in server.items()}.items()


# SQL reference

def signature(text):
    """A signature without what does not matter: white space and casts."""
    return re.sub(r"\s+", "", re.sub(r"::[a-z]+(\[\])?", "", text)).replace('"always"', "always")


def test_every_function_stands_in_the_reference_as_it_is(db):
    functions = db.rows("""
        SELECT p.proname AS name, p.prokind AS kind, pg_get_function_identity_arguments(p.oid) AS identity,
               array_to_string(ARRAY(
                   SELECT a.name || ' ' || format_type(a.type, NULL) || coalesce(' DEFAULT ' || d.expression, '')
                     FROM unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[]),
                                 coalesce(p.proargmodes, array_fill('i'::"char", ARRAY[p.pronargs])))
                          WITH ORDINALITY AS a(name, type, mode, n)
                     LEFT JOIN LATERAL (SELECT pg_get_function_arg_default(p.oid, a.n::int) AS expression) d ON true
                    WHERE a.mode = 'i' ORDER BY a.n), ', ') AS arguments
          FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
          JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'sync_outbox'""")
    expected = {f"{row.name}({signature(row.arguments)})" for row in functions}

    shown = {signature(" ".join(block.text.splitlines()))
             for block in REFERENCE.below("SQL reference") if block.language == ""}
    shown = {re.sub(r"^CALL|returns.*$", "", text) for text in shown}
    assert shown == expected


def test_every_table_view_and_column_stands_in_the_reference(db):
    reference = REFERENCE.section("SQL reference")
    for row in db.rows("""
            SELECT c.relname AS relation FROM pg_class c
              JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
              JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'sync_outbox' WHERE c.relkind IN ('r', 'v')"""):
        assert f"`{row.relation}`" in reference
    table = {name for cells in REFERENCE.tables("The table sync_outbox") for name in code(cells[0])}
    assert table == {row.attname for row in db.rows(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'sync_outbox'::regclass AND attnum > 0")}
    # Columns of what the two reporting functions give.
    for function in ("sync_outbox_stats", "sync_outbox_overview"):
        for column in db.rows("SELECT unnest(proargnames[pronargs + 1:]) AS name FROM pg_proc WHERE proname = %s", [function]):
            assert f"`{column.name}`" in reference, f"{column.name} of {function}"


# Links

@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    document = Document(name)
    for target in re.findall(r"\]\(([^)\s]+)\)", document.text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = Document((document.path.parent / path).resolve().relative_to(PROJECT)) if path.endswith(".md") else document
        assert (document.path.parent / path).exists(), target
        headings = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
                    for heading in re.findall(r"^#+ (.*)$", linked.text, re.M)}
        assert not anchor or anchor in headings, target


# Paths

# What stands in the project, and, as design.md writes it, a file below src without that prefix.
PATH = re.compile(r"`((?:src|crates|sql|scripts|docs|bench|demo|examples|fuzz|tests)/[\w./-]+|[a-z_]+/[a-z_]+\.rs)`")


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_paths_that_are_named_exist(name):
    named = {path for path in PATH.findall(Document(name).text) if "NEW" not in path}

    assert {path for path in named if not (PROJECT / path).exists() and not (PROJECT / "src" / path).exists()} == set()
