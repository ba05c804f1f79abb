"""A hub's database, and the changes that tests have it apply."""

import json
import uuid


class Hub:
    """A database whose table `sales` is accepted, and a way to say what is sent to it."""

    def __init__(self, db):
        self.db = db
        db.run("CREATE TABLE sales (id int PRIMARY KEY, qty int, note text)")
        self.accept("sales")

    def __getattr__(self, name):
        return getattr(self.db, name)

    def table(self, definition, name="t"):
        self.run(f"CREATE TABLE {name} ({definition})")
        self.accept(name)

    def accept(self, relation):
        self.run("SELECT sync_outbox_accept(%s)", [relation])

    def apply(self, *changes, session=None):
        """The answer as a dict."""
        body = json.dumps({"changes": changes})
        answer = (session or self.db.conn).execute("SELECT sync_outbox_apply(%s::json)::text", [body])
        return json.loads(answer.fetchone()[0])

    def acks(self, *changes):
        """Applies; every change is acked."""
        assert self.apply(*changes) == {"acked": keys(*changes), "errors": [], "conflicts": []}

    def error(self, change):
        """Applies one change that is refused; returns its error."""
        answer = self.apply(change)
        assert answer["acked"] == [] and answer["conflicts"] == []
        assert [entry["dedup_key"] for entry in answer["errors"]] == keys(change)
        return answer["errors"][0]["error"]

    def content(self, table="sales"):
        return [tuple(row) for row in self.rows(f"SELECT * FROM {table} ORDER BY 1")]

    def applied(self):
        return {str(row.dedup_key) for row in self.rows("SELECT dedup_key FROM sync_outbox_applied")}


def own_hub(new_server, **options):
    """A hub on a server of its own."""
    server = new_server(**options)
    database = server.create_database()
    database.run("CREATE EXTENSION sync_outbox")
    return Hub(database)


def change(op, pk=None, data=None, table="sales", schema="public", **further):
    return {"schema": schema, "table": table, "op": op, "pk": pk, "data": data, "dedup_key": str(uuid.uuid4()),
            **further}


def insert(table="sales", key=("id",), **data):
    return change("INSERT", {name: data[name] for name in key}, data, table)


def update(pk, table="sales", **data):
    return change("UPDATE", pk if isinstance(pk, dict) else {"id": pk}, data, table)


def delete(pk, table="sales"):
    return change("DELETE", pk if isinstance(pk, dict) else {"id": pk}, None, table)


def truncate(table="sales"):
    return change("TRUNCATE", table=table)


def keys(*changes):
    return [change["dedup_key"] for change in changes]
