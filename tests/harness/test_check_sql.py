"""scripts/check-sql.py finds what search_path decides about, and nothing else."""

import subprocess

import pytest

from support.prefix import PROJECT

SCRIPT = PROJECT / "scripts/check-sql.py"


def found(path):
    done = subprocess.run(["/usr/bin/python3", SCRIPT, path], capture_output=True, text=True)
    assert done.returncode == (1 if done.stdout else 0)
    return [line.split(": ")[1] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("sql, what", [
    *[(f"SELECT FROM t WHERE a {operator} b", [f"operator {operator}"])
      for operator in ["=", "<>", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "||", "->", "->>", "~", "!~", "%", "&", "@>", "#>>", "?"]],
    ("SELECT a-1, (b)*2", ["operator -", "operator *"]), ("SELECT a::pg_catalog.text=$1", ["operator ="]),
    ("SELECT FROM t WHERE a IN ('x')", ["IN (..)"]), ("SELECT FROM t WHERE a NOT IN (SELECT 1)", ["IN (..)"]),
    ("SELECT FROM t WHERE a LIKE 'x%' AND b NOT ILIKE c", ["LIKE", "ILIKE"]), ("SELECT a BETWEEN 1 AND 2", ["BETWEEN"]),
    ("SELECT a SIMILAR TO b", ["SIMILAR TO"]), ("SELECT a IS NOT DISTINCT FROM b", ["IS DISTINCT FROM"]),
    ("SELECT CASE a WHEN 1 THEN 2 END", ["CASE x WHEN"]), ("SELECT NULLIF(a, b)", ["NULLIF"]),
    ("SELECT FROM a JOIN b USING (id)", ["USING (..)"]), ("SELECT FROM a NATURAL JOIN b", ["NATURAL JOIN"]),
    ("SELECT a = ANY (b)", ["operator ="]), ("SELECT now(), count(*)", ["function now", "function count"]),
    ("SELECT a::text, b::regclass::int", ["type text", "type regclass"]),
    ("UPDATE t SET a = b = c WHERE d = 1", ["operator =", "operator ="]), ("UPDATE t SET a = 1 FROM u WHERE t.id = u.id", ["operator ="]),
    ("UPDATE t SET a = (SELECT x = y FROM u)", ["operator ="]),
    ("DO $a$ BEGIN IF x = 1 THEN NULL; END IF; END $a$", ["operator ="]),
    ("CREATE TABLE t (a int CHECK (a > 0)) WITH (fillfactor = 10)", ["operator >"]),
    ("CREATE INDEX i ON t (a) WHERE b <> 'x'", ["operator <>"]),
    ("SELECT a::bigint*2, b::int -1, +1, -1::bigint", ["operator *", "operator -", "operator +", "operator -"]),
    ("UPDATE t SET a = (b) = c, d = u.e = f; SELECT g, h = i", ["operator ="] * 3),
    ("SELECT FROM a JOIN b ON starts_with(c, d)", ["function starts_with"]), ("SELECT sync_outbox_flush()", ["function sync_outbox_flush"]),
    ("SELECT timestamptz '2000-01-01', interval '1 day'", ["type timestamptz"]), ("SELECT CAST(a AS int8)", ["CAST (..)"]),
    ('SELECT FROM t ORDER BY a COLLATE "C"', ["COLLATE"]), ("SELECT FROM t WHERE a = '\\' AND b", ["operator ="]),
    ("SELECT FROM t TABLESAMPLE SYSTEM (1)", ["function SYSTEM"]),
    # Nothing to find
    ("SELECT -1, f.g(-1) OPERATOR(pg_catalog.-) -1, pg_catalog.timestamptz '2000-01-01', a COLLATE pg_catalog.\"C\"", []),
    ("DO $a$ BEGIN RAISE NOTICE 'x' USING HINT = 'a = b', ERRCODE = '55000'; SET LOCAL a.b = 'c'; END $a$", []),
    ("SELECT *, t.*, pg_catalog.count(*) FROM t WHERE a OPERATOR(pg_catalog.=) ANY (b) AND c OPERATOR(pg_catalog.->>) 'x = y' IS NULL", []),
    ("UPDATE t AS u SET a = 1, b = excluded.b, (c, d) = ROW(1, 2) WHERE NOT e", []), ("SELECT f.g(x => -1, y => $1), -1", []),
    ("INSERT INTO t (a, b) VALUES ($1::pg_catalog.text, '<>') ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING a", []),
    ("SELECT CASE WHEN a THEN b::bigint ELSE coalesce(c, 0) END, EXISTS (SELECT FROM t) -- a = b", []),
    ("CREATE TABLE t (LIKE s.u, a numeric(10, 2), PRIMARY KEY (a)) WITH (autovacuum_vacuum_threshold = 5, fillfactor = 10)", []),
    ("SELECT k.a FROM pg_catalog.json_to_record($1) AS k(a int), s.f(1) l (b)", []),
])
def test_a_statement(tmp_path, sql, what):
    script = tmp_path / "some.sql"
    script.write_text(sql + ";\n")
    assert found(script) == what
    source = tmp_path / "some.rs"
    source.write_text('fn f() {\n    // a = b\n    let x = if a == b { \'"\' } else { \'x\' };\n    run("' + sql.replace("\\", "\\\\").replace('"', '\\"') + '");\n}\n')
    assert found(source) == what or sql.startswith("DO ")


def test_rust_that_is_no_sql(tmp_path):
    source = tmp_path / "some.rs"
    source.write_text("""fn f() { let x = a < b && c != "x = y"; run(r#"SELECT 1 WHERE "a" <= b"#); error.hint("SELECT f() WHERE a = b;"); let c = '\\''; run("SELECT 1 > 0"); }
#[cfg(test)]
mod tests { const X: &str = "SELECT a = b FROM t"; }
""")
    assert found(source) == ["operator <=", "operator >"]
