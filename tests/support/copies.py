"""What a copy says, and the token files that a server keeps for its own databases."""

import json

CLONED = "WARNING:  sync_outbox sends nothing: this database is a copy"


def kept(server):
    """The token files of a server: {name: content}."""
    directory = server.data / "sync_outbox"
    return {file.name: json.loads(file.read_text()) for file in directory.iterdir()} if directory.exists() else {}
