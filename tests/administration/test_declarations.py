"""The functions of the library take and give what `sql/` declares: nothing else compares the two, because the scripts
are written by hand, and a value that is read as another type is read wrongly.

The Rust side is read from the sources, the declared side from pg_proc of the installed extension."""

import pathlib
import re

import pytest

SOURCES = pathlib.Path(__file__).resolve().parents[1]
while not (SOURCES / "Cargo.toml").exists():
    SOURCES = SOURCES.parent
SOURCES = SOURCES / "src"

# What each Rust type reads or writes. A json is a text inside, and an oid is what regclass is.
TYPES = {
    "&[u8]": {"text", "json"}, "Vec<u8>": {"text", "json"}, "String": {"text", "json"}, "&str": {"text"},
    "Array<&[u8]>": {"text[]"}, "Array<&CStr>": {"name[]"}, "Array<i64>": {"bigint[]"}, "&CStr": {"name"},
    "i16": {"smallint"}, "i32": {"integer"}, "i64": {"bigint"}, "f64": {"double precision"}, "bool": {"boolean"},
    "Oid": {"regclass"}, "TimestampWithTimeZone": {"timestamp with time zone"}, "()": {"void"},
}

# Functions in C form read their arguments one by one; triggers have none.
FUNCTIONS_IN_C = {"sync_outbox_capture": [], "sync_outbox_target_changed": [], "sync_outbox_drain": ["&[u8]", "&[u8]"]}

# What is left for the objects of older versions, which are told that they are too old.
OF_OLDER_OBJECTS = {"sync_outbox_overview"}


def strip(rust_type):
    """The type without lifetimes and paths."""
    return re.sub(r"\s+", " ", re.sub(r"(?:<'\w+>|'\w+(?:, ?| )|\b\w+::)", "", rust_type)).strip().rstrip(",")


def read_aliases():
    """type Text<'a> = Option<&'a [u8]>; and the like."""
    source = (SOURCES / "api" / "argument.rs").read_text()
    return {name: strip(meaning) for name, meaning in re.findall(r"^pub type (\w+)(?:<'a>)? = (.+);$", source, re.M)}


ALIASES = read_aliases()


def resolve(rust_type):
    """(whether it can be NULL, the type): aliases and Option taken off."""
    rust_type = strip(rust_type)
    rust_type = ALIASES.get(rust_type, rust_type)
    optional = re.fullmatch(r"Option<(.+)>", rust_type)
    if not optional:
        return False, rust_type
    return True, ALIASES.get(optional[1], optional[1])


def split(text):
    """Parts between commas that stand in no brackets."""
    parts, depth, part = [], 0, ""
    for character in text:
        depth += character in "<([" and 1 or character in ">)]" and -1 or 0
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    return [part.strip() for part in [*parts, part] if part.strip()]


def read_functions():
    """By name: (arguments, columns or None, result), as (name, type) and type."""
    functions = {}
    for path in sorted(SOURCES.rglob("*.rs")):
        for declaration in path.read_text().split("#[pgrx::pg_extern")[1:]:
            head = re.search(r"^fn (\w+)\((.*?)\)\s*(?:->\s*(.+?)\s*)?\{$", declaration, re.M | re.S)
            name, arguments, result = head.groups()
            arguments = [tuple(argument.split(": ", 1)) for argument in split(arguments)]
            columns = re.findall(r"name!\((\w+),\s*([^()]+)\)", result or "")
            functions[name] = (arguments, columns or None, result or "()")
    return functions


FUNCTIONS = {name: function for name, function in read_functions().items() if name not in OF_OLDER_OBJECTS}

DECLARED = """
    SELECT p.oid::regprocedure::text AS signature, p.proname AS name, p.prosrc AS symbol, p.prokind AS kind,
           ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) t) AS arguments,
           ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proallargtypes) WITH ORDINALITY a (t, n)
                  WHERE p.proargmodes[n] IN ('o', 't') ORDER BY n) AS columns,
           coalesce(p.proargnames, '{}') AS names, coalesce(p.proargmodes::text[], '{}') AS modes,
           format_type(p.prorettype, NULL) AS result, p.proretset AS is_set, p.proisstrict AS strict
      FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
      JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
     WHERE e.extname = 'sync_outbox' AND p.prolang = (SELECT oid FROM pg_language WHERE lanname = 'c')"""


@pytest.fixture
def declared(db):
    return {row.symbol.removesuffix("_wrapper"): row for row in db.rows(DECLARED)}


def test_every_function_of_the_library_is_declared_and_the_other_way_round(declared):
    assert set(declared) == set(FUNCTIONS) | set(FUNCTIONS_IN_C)
    assert len(FUNCTIONS) > 15  # they were found
    for symbol in FUNCTIONS:
        assert declared[symbol].symbol == f"{symbol}_wrapper"


@pytest.mark.parametrize("symbol", FUNCTIONS)
def test_arguments_and_results_have_the_types_that_are_declared(declared, symbol):
    arguments, columns, result = FUNCTIONS[symbol]
    sql = declared[symbol]
    names = [name for name, mode in zip(sql.names, sql.modes or ["i"] * len(sql.names)) if mode == "i"]
    outputs = [name for name, mode in zip(sql.names, sql.modes) if mode in "ot"]

    assert [name.rstrip("_") for name, _ in arguments] == names
    assert len(arguments) == len(sql.arguments)
    for (name, rust_type), sql_type in zip(arguments, sql.arguments):
        optional, rust_type = resolve(rust_type)
        assert sql_type in TYPES[rust_type], f"{name} of {sql.signature}"
        assert optional and not sql.strict, f"{name} of {sql.signature} can be NULL"
    if columns is None:
        assert not sql.is_set
        assert sql.result in TYPES[resolve(result)[1]], sql.signature
    else:
        assert sql.is_set and sql.result == "record"
        assert [name for name, _ in columns] == outputs
        for (name, rust_type), sql_type in zip(columns, sql.columns, strict=True):
            assert sql_type in TYPES[resolve(rust_type)[1]], f"column {name} of {sql.signature}"


@pytest.mark.parametrize("symbol", FUNCTIONS_IN_C)
def test_functions_in_c_form_read_the_arguments_that_are_declared(declared, symbol):
    sql = declared[symbol]
    assert len(sql.arguments) == len(FUNCTIONS_IN_C[symbol])
    for rust_type, sql_type in zip(FUNCTIONS_IN_C[symbol], sql.arguments):
        assert sql_type in TYPES[rust_type]
    read = [pathlib.Path(path).read_text() for path in SOURCES.rglob("entry.rs")]
    assert sum(source.count("pg_getarg::<&[u8]>") for source in read) == sum(map(len, FUNCTIONS_IN_C.values()))


def test_a_comparison_that_is_wrong_would_be_seen():
    assert resolve("Text<'_>") == (True, "&[u8]") and resolve("Option<TextResult>") == (True, "Vec<u8>")
    assert resolve("Option<&CStr>") == (True, "&CStr") and resolve("NameArray<'_>") == (True, "Array<&CStr>")
    assert resolve("IdArray<'_>") == (True, "Array<i64>") and resolve("&'static str") == (False, "&str")
    assert "json" not in TYPES["&str"] and "bigint" not in TYPES["i32"]
