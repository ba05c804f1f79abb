"""The quick start of the README, typed. As a program, on a server that is installed, without pytest and psycopg:

    python3 -m support.quick_start BINDIR SOCKETS EXAMPLES PORT DIRECTORY
"""

import pathlib
import socket
import sys
import types

from .document import Document, Typist, plain
from .wait import wait_for


def listens(port):
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def type_and_compare(typist, block):
    """Types a block. What only looks may have to look again: the worker sends after COMMIT."""
    if block.language == "sh":
        typist.sh(block.text)
        if "--listen" in block.text:
            wait_for(lambda: listens(typist.port), what="the receiver")
        return
    output = typist.shown(typist.sql(block.text))
    if block.answer is None or plain(output) == plain(block.answer):
        return
    if all(line.startswith(("SELECT * FROM ", "\\connect ")) for line in block.text.splitlines()):
        wait_for(lambda: plain(typist.shown(typist.sql(block.text))) == plain(block.answer), what=f"the answer of {block}")
    else:
        assert plain(output) == plain(block.answer), f"{block}:\n{output}"


def main(bindir, sockets, examples, port, directory):
    directory = pathlib.Path(directory)
    (directory / "examples").symlink_to(examples)
    server = types.SimpleNamespace(run=types.SimpleNamespace(bindir=bindir), sockets=sockets)
    typist = Typist(server, directory, instead={"127.0.0.1:8080": f"127.0.0.1:{port}"})
    typist.port = int(port)
    try:
        blocks = [block for block in Document("README.md").below("Quick start") if block.language in ("sh", "sql")]
        assert len(blocks) > 8
        for block in blocks:
            type_and_compare(typist, block)
    finally:
        typist.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
