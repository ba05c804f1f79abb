"""What a statement does to the outbox by SQL, seen by PostgreSQL's own auto_explain; what is done without the executor is not
seen."""

import json


def modifications(database, statement, operation):
    """How many statements with this operation (Insert, Update, Delete) on the outbox a statement needs."""
    seen = []
    database.conn.add_notice_handler(lambda notice: seen.append(notice.message_primary))
    database.run("""LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;
        SET auto_explain.log_format = json; SET client_min_messages = log""")
    database.run(statement)
    database.run("RESET ALL")
    plans = [json.loads(text[text.index("{"):]) for text in seen if "plan:" in text]
    assert any(statement in plan["Query Text"] for plan in plans), seen
    return sum(_modifies(plan["Plan"], operation) for plan in plans)


def _modifies(node, operation):
    """A modification is the root of a plan, or stands in a WITH below it."""
    here = node.get("Operation") == operation and node["Relation Name"] == "sync_outbox"
    return here or any(_modifies(below, operation) for below in node.get("Plans", []))
