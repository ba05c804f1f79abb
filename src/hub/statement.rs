//! The statement that applies a change: `$1` is its key, `$2` its data, `$3` the values it found, all as json.
//!
//! Values are read by `json_to_record` with the types of the hub's columns, and only those of columns that the change
//! has: a record of the whole row type would check the domains of the other columns too.

use super::definition::{Key, TableDefinition};
use crate::store::quote_ident;
use wire::Operation;
use wire::body::{Incoming, Object};

#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    pub sql: String,
    /// The error if no row was touched.
    pub if_none: Option<&'static str>,
    /// What to compare if no row was touched, for a change that says which values it found.
    pub compared: Option<Compared>,
}

/// Columns that must still have the values which the sender saw.
#[derive(Debug, PartialEq, Eq)]
pub struct Compared {
    pub columns: Vec<String>,
    /// Returns whether each of them differs, if there is a row.
    pub sql: String,
}

/// The statement for a change, or why the table cannot take it.
pub fn of(change: &Incoming<'_>, table: &TableDefinition) -> Result<Statement, String> {
    must_know_columns(change, table)?;
    match change.operation {
        Operation::Insert => insert(change, table),
        Operation::Update => update(change, table),
        Operation::Delete => {
            let found = matches_key(key(change, table)?, table);
            Ok(Statement {
                sql: format!("DELETE FROM {} AS t WHERE {found}{}", from(table), and_unchanged(change, table)),
                if_none: None,
                compared: compared(change, table, &found),
            })
        }
        Operation::Truncate => Ok(Statement {
            sql: match table.referenced {
                true => format!("DELETE FROM {}", from(table)),
                false => format!("TRUNCATE {}", from(table)),
            },
            if_none: None,
            compared: None,
        }),
    }
}

/// Refuses a value without a column, which would be lost silently.
fn must_know_columns(change: &Incoming<'_>, table: &TableDefinition) -> Result<(), String> {
    if table.ignore_unknown {
        return Ok(());
    }
    let unknown: Vec<String> = change
        .data
        .members
        .keys()
        .filter(|name| !table.columns.contains_key(&***name))
        .map(|c| quote_ident(c))
        .collect();
    match unknown.as_slice() {
        [] => Ok(()),
        columns => Err(format!(
            "table {} has no column {}; add it, or accept the table with ignore_unknown_columns => true",
            table.name,
            columns.join(", ")
        )),
    }
}

/// An upsert, because the row may exist: after a backfill, or if the record of applied keys was pruned before a retry.
fn insert(change: &Incoming<'_>, table: &TableDefinition) -> Result<Statement, String> {
    let key = key(change, table)?;
    let given = given(&change.data, table);
    if let Some(lost) = key.keys().find(|k| !given.contains(&k.as_str()) && !table.columns[*k].generated) {
        return Err(format!("data of an INSERT lacks the key column \"{lost}\""));
    }
    let names = list(given.iter().map(|c| quote_ident(c)));
    let identity: Vec<_> =
        given.iter().filter(|c| !key.contains_key(**c) && table.columns[**c].always_identity).collect();
    let sets = list(
        given
            .iter()
            .filter(|c| !key.contains_key(**c) && !table.columns[**c].always_identity)
            .map(|c| format!("{0} = excluded.{0}", quote_ident(c))),
    );
    let action = if sets.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {sets}") };
    // An identity column cannot be updated: if its value differs, no row is touched, which is an error.
    let guard = match identity.as_slice() {
        [] => String::new(),
        _ if sets.is_empty() => String::new(),
        identity => format!(
            " WHERE {}",
            identity
                .iter()
                .map(|c| format!("t.{0} OPERATOR(pg_catalog.=) excluded.{0}", quote_ident(c)))
                .collect::<Vec<_>>()
                .join(" AND ")
        ),
    };
    Ok(Statement {
        if_none: (!guard.is_empty()).then_some("an identity column GENERATED ALWAYS cannot be updated"),
        sql: format!(
            "INSERT INTO {} AS t ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM {} ON CONFLICT ({}) DO {action}{guard}",
            table.name,
            record("$2", "d", &given, table),
            list(key.keys().map(|c| quote_ident(c))),
        ),
        compared: None,
    })
}

fn update(change: &Incoming<'_>, table: &TableDefinition) -> Result<Statement, String> {
    let found = matches_key(key(change, table)?, table);
    let unchanged = and_unchanged(change, table);
    let given = given(&change.data, table);
    let sql = if given.is_empty() {
        // No column of the hub has changed, but the row must exist.
        format!("SELECT FROM {} AS t WHERE {found}{unchanged}", from(table))
    } else {
        format!(
            "UPDATE {} AS t SET {} FROM {} WHERE {found}{unchanged}",
            from(table),
            list(given.iter().map(|c| format!("{0} = d.{0}", quote_ident(c)))),
            record("$2", "d", &given, table),
        )
    };
    Ok(Statement { sql, if_none: Some("row not found"), compared: compared(change, table, &found) })
}

/// The columns that can be compared: those whose old values the change has, unless the hub computes them.
fn known_before<'a>(change: &'a Incoming<'_>, table: &TableDefinition) -> Vec<&'a str> {
    change.old.as_ref().map(|old| given(old, table)).unwrap_or_default()
}

/// The condition that the row is as the sender saw it; a part of the statement, so that it is checked again after
/// waiting for a lock of the row.
fn and_unchanged(change: &Incoming<'_>, table: &TableDefinition) -> String {
    let columns = known_before(change, table);
    if columns.is_empty() {
        return String::new();
    }
    let differs = columns.iter().map(|c| differs(c)).collect::<Vec<_>>().join(" OR ");
    format!(" AND NOT (SELECT {differs} FROM {})", record("$3", "o", &columns, table))
}

fn compared(change: &Incoming<'_>, table: &TableDefinition, found: &str) -> Option<Compared> {
    let columns = known_before(change, table);
    (!columns.is_empty()).then(|| Compared {
        sql: format!(
            "SELECT {} FROM {} AS t CROSS JOIN {} WHERE {found}",
            list(columns.iter().map(|c| differs(c))),
            from(table),
            record("$3", "o", &columns, table)
        ),
        columns: columns.into_iter().map(str::to_owned).collect(),
    })
}

/// Compares JSON values, which is what the sender saw: not every type has an equality operator, and some of those take
/// different values for equal. Not IS DISTINCT FROM, which would look its operator up by name.
fn differs(column: &str) -> String {
    let name = quote_ident(column);
    let (here, there) = (format!("pg_catalog.to_jsonb(t.{name})"), format!("pg_catalog.to_jsonb(o.{name})"));
    format!(
        "coalesce({here} OPERATOR(pg_catalog.<>) {there}, ({here} IS NULL) OPERATOR(pg_catalog.<>) ({there} IS NULL))"
    )
}

fn key<'t>(change: &Incoming<'_>, table: &'t TableDefinition) -> Result<&'t Key, String> {
    table.key(change.pk.members.keys().map(|name| &**name))
}

/// The members that are columns of the table which the hub does not compute.
fn given<'a>(data: &'a Object<'_>, table: &TableDefinition) -> Vec<&'a str> {
    data.members
        .keys()
        .map(|name| &**name)
        .filter(|name| table.columns.get(*name).is_some_and(|c| !c.generated))
        .collect()
}

/// ONLY, because inheritance children are tables of their own; partitions are not.
fn from(table: &TableDefinition) -> String {
    if table.partitioned { table.name.clone() } else { format!("ONLY {}", table.name) }
}

/// Scalar subqueries, so that there is no join and the key's index is used whatever the planner estimates.
fn matches_key(key: &Key, table: &TableDefinition) -> String {
    key.iter()
        .map(|(column, equals)| {
            let name = quote_ident(column);
            let value = record("$1", "k", &[column], table);
            format!("t.{name} {equals} (SELECT k.{name} FROM {value})")
        })
        .collect::<Vec<_>>()
        .join(" AND ")
}

/// The JSON object `argument` as a row of these columns.
fn record(argument: &str, alias: &str, columns: &[&str], table: &TableDefinition) -> String {
    let columns = list(columns.iter().map(|c| format!("{} {}", quote_ident(c), table.columns[*c].type_name)));
    format!("pg_catalog.json_to_record({argument}) AS {alias}({columns})")
}

fn list(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::accepted::HubColumn;
    use wire::body::parse;

    fn table(partitioned: bool, referenced: bool) -> TableDefinition {
        let column = |type_name: &str, generated, always_identity| HubColumn {
            type_name: type_name.to_owned(),
            generated,
            always_identity,
        };
        let equals = "OPERATOR(\"pg_catalog\".=)".to_owned();
        TableDefinition {
            name: "\"s\".\"t\"".into(),
            partitioned,
            referenced,
            ignore_unknown: true,
            columns: [
                ("id", column("integer", false, false)),
                ("a", column("text", false, false)),
                ("n", column("bigint", false, true)),
                ("sum", column("numeric", true, false)),
                ("code", column("uuid", false, false)),
            ]
            .map(|(name, column)| (name.to_owned(), column))
            .into(),
            keys: vec![
                Key::from([("id".to_owned(), equals.clone())]),
                Key::from([("a".to_owned(), equals.clone()), ("code".to_owned(), equals)]),
            ],
        }
    }

    fn sql(op: &str, pk: &str, data: &str, table: &TableDefinition) -> Result<Statement, String> {
        let body = format!(
            r#"{{"changes": [{{"schema": "s", "table": "t", "op": "{op}", "pk": {pk}, "data": {data},
                "dedup_key": "01920000-0000-7000-8000-000000000001"}}]}}"#
        );
        of(&parse(&body).unwrap().iter().next().unwrap(), table)
    }

    #[test]
    fn insert_is_an_upsert_of_known_columns() {
        let statement =
            sql("INSERT", r#"{"id": 1}"#, r#"{"id": 1, "a": "x", "sum": 5, "alien": 1}"#, &table(false, false))
                .unwrap();
        assert_eq!(
            statement.sql,
            "INSERT INTO \"s\".\"t\" AS t (\"a\", \"id\") OVERRIDING SYSTEM VALUE SELECT \"a\", \"id\" \
             FROM pg_catalog.json_to_record($2) AS d(\"a\" text, \"id\" integer) \
             ON CONFLICT (\"id\") DO UPDATE SET \"a\" = excluded.\"a\""
        );
        assert_eq!(statement.if_none, None);
    }

    #[test]
    fn insert_never_updates_an_identity() {
        let statement = sql("INSERT", r#"{"id": 1}"#, r#"{"id": 1, "a": "x", "n": 5}"#, &table(false, false)).unwrap();
        assert!(
            statement
                .sql
                .ends_with("DO UPDATE SET \"a\" = excluded.\"a\" WHERE t.\"n\" OPERATOR(pg_catalog.=) excluded.\"n\"")
        );
        assert!(statement.if_none.is_some());
    }

    #[test]
    fn insert_of_a_key_alone() {
        let statement = sql("INSERT", r#"{"id": 1}"#, r#"{"id": 1}"#, &table(false, false)).unwrap();
        assert!(statement.sql.ends_with("ON CONFLICT (\"id\") DO NOTHING"));
    }

    #[test]
    fn update_and_delete_find_the_row_by_the_index_of_the_key() {
        let shape = table(false, false);
        let statement = sql("UPDATE", r#"{"code": "c", "a": "x"}"#, r#"{"sum": 1, "id": 2}"#, &shape).unwrap();
        let found = "t.\"a\" OPERATOR(\"pg_catalog\".=) \
                     (SELECT k.\"a\" FROM pg_catalog.json_to_record($1) AS k(\"a\" text)) AND \
                     t.\"code\" OPERATOR(\"pg_catalog\".=) \
                     (SELECT k.\"code\" FROM pg_catalog.json_to_record($1) AS k(\"code\" uuid))";
        assert_eq!(
            statement.sql,
            format!(
                "UPDATE ONLY \"s\".\"t\" AS t SET \"id\" = d.\"id\" \
                 FROM pg_catalog.json_to_record($2) AS d(\"id\" integer) WHERE {found}"
            )
        );
        assert_eq!(statement.if_none, Some("row not found"));
        let statement = sql("DELETE", r#"{"code": "c", "a": "x"}"#, "null", &shape).unwrap();
        assert_eq!(statement.sql, format!("DELETE FROM ONLY \"s\".\"t\" AS t WHERE {found}"));
        assert_eq!(statement.if_none, None);
    }

    #[test]
    fn what_the_sender_saw_must_still_be_there() {
        let body = r#"{"changes": [{"schema": "s", "table": "t", "op": "UPDATE", "pk": {"id": 1}, "data": {"a": "y"},
            "old": {"a": "x", "sum": 5, "alien": 1}, "dedup_key": "01920000-0000-7000-8000-000000000001"}]}"#;
        let statement = of(&parse(body).unwrap().iter().next().unwrap(), &table(false, false)).unwrap();
        let differs = differs("a");
        let old = "pg_catalog.json_to_record($3) AS o(\"a\" text)";
        assert!(statement.sql.ends_with(&format!(" AND NOT (SELECT {differs} FROM {old})")), "{}", statement.sql);
        let compared = statement.compared.unwrap();
        assert_eq!(compared.columns, ["a"]);
        let select = format!("SELECT {differs} FROM ONLY \"s\".\"t\" AS t CROSS JOIN {old} WHERE t.\"id\"");
        assert!(compared.sql.starts_with(&select), "{}", compared.sql);
    }

    #[test]
    fn update_of_nothing_known_still_wants_its_row() {
        let statement = sql("UPDATE", r#"{"id": 1}"#, r#"{"alien": 1, "sum": 2}"#, &table(false, false)).unwrap();
        assert!(statement.sql.starts_with("SELECT FROM ONLY \"s\".\"t\" AS t WHERE t.\"id\""));
        assert_eq!(statement.if_none, Some("row not found"));
    }

    #[test]
    fn unknown_columns_are_an_error_unless_they_are_to_be_ignored() {
        let mut shape = table(false, false);
        assert!(sql("UPDATE", r#"{"id": 1}"#, r#"{"alien": 1, "a": "x", "sum": 1}"#, &shape).is_ok());
        shape.ignore_unknown = false;
        let error = sql("UPDATE", r#"{"id": 1}"#, r#"{"alien": 1, "a": "x", "b": 1}"#, &shape).unwrap_err();
        assert!(error.contains("has no column \"alien\", \"b\";"), "{error}");
        assert!(sql("INSERT", r#"{"id": 1}"#, r#"{"id": 1, "sum": 1}"#, &shape).is_ok());
        assert!(sql("DELETE", r#"{"id": 1}"#, "null", &shape).is_ok());
    }

    #[test]
    fn truncate() {
        let truncate =
            |partitioned, referenced| sql("TRUNCATE", "null", "null", &table(partitioned, referenced)).unwrap().sql;
        assert_eq!(truncate(false, false), "TRUNCATE ONLY \"s\".\"t\"");
        assert_eq!(truncate(true, false), "TRUNCATE \"s\".\"t\"");
        assert_eq!(truncate(false, true), "DELETE FROM ONLY \"s\".\"t\"");
    }

    #[test]
    fn keys_must_match() {
        let shape = table(false, false);
        for (op, pk, data, why) in [
            ("DELETE", r#"{"a": 1}"#, "null", "no unique, immediate index on exactly (a)"),
            ("UPDATE", r#"{"id": 1, "a": "x"}"#, "{}", "no unique, immediate index on exactly (a, id)"),
            ("INSERT", r#"{"id": 1}"#, r#"{"a": "x"}"#, "lacks the key column \"id\""),
        ] {
            let error = sql(op, pk, data, &shape).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
