"""JSON that is deeper or larger than its readers like."""

import json

from .hub_database import change

# The member under which serde_json keeps a value that it does not read.
RAW = "$serde_json::private::RawValue"


def nested_json(levels, nest=120):
    """A small JSON text whose strings hold JSON again.

    The recursion limit of a parser that follows them counts for each level alone."""
    text = "1"
    for _ in range(levels):
        text = text.replace("\\", "\\u005c").replace('"', "\\u0022")
        text = "[" * nest + '{"' + RAW + '":"' + text + '"}' + "]" * nest
    return text


def big_body(kind, size):
    """A body of about so many bytes, made of the smallest parts that there are."""
    n = size // 2 - 200
    if kind == "pk elements":
        body = json.dumps({"changes": [change("DELETE", {"id": "BIG"})]})
        return body.replace('"BIG"', "[" + "0," * n + "0]")
    if kind == "changes":
        return '{"changes": [' + "0," * n + "0]}"
    members = ",".join(f'"{i:x}":0' for i in range(size // 11))
    body = json.dumps({"changes": [change("UPDATE", {"id": 1}, "BIG")]})
    return body.replace('"BIG"', "{" + members + "}")
