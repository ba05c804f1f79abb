"""The receiver that is shipped as an example, running, and what tests send to it."""

import http.client
import json
import re
import signal
import socket
import subprocess
import uuid

from .prefix import PROJECT
from .wait import wait_for

PROGRAM = PROJECT / "examples/receiver/receiver.py"
PATH = "/api/sync/upload_outbox"
TOKEN = "s3cret-t0ken"
# Of a request in which everything is as it should be, but for what is sent behind it.
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\n"


class Example:
    """The running program, in front of a hub database whose table `sales` is accepted."""

    def __init__(self, db, where, *options):
        self.db = db
        self.login = db.role("door")
        db.run(f"GRANT EXECUTE ON FUNCTION sync_outbox_apply_text(text) TO {self.login}")
        db.run("CREATE TABLE IF NOT EXISTS sales (id int PRIMARY KEY, qty int)")
        db.run("SELECT sync_outbox_accept('sales')")
        self.log = where / "receiver.log"
        token_file = where / "token"
        token_file.write_text(TOKEN + "\n")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["/usr/bin/python3", PROGRAM, "--listen", "127.0.0.1:0", "--dsn", db.server.dsn(db.name, self.login),
                 "--token-file", token_file, *options], stderr=log, stdin=subprocess.DEVNULL)
        found = wait_for(lambda: re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.said()), what="listening")
        self.port = int(found[1])

    def said(self):
        return self.log.read_text()

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def post(self, body, connection=None, path=PATH, **headers):
        """(status, answer, headers) of one request; a header of None is left out."""
        own = connection or self.connect()
        data = body if isinstance(body, (bytes, str)) else json.dumps(body)
        given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        own.request("POST", path, data, {name: value for name, value in given.items() if value is not None})
        response = own.getresponse()
        answer = json.loads(response.read())
        if connection is None:
            own.close()
        return response.status, answer, response.headers

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def insert(row, **data):
    return {"schema": "public", "table": "sales", "op": "INSERT", "pk": {"id": row}, "data": {"id": row, **data},
            "dedup_key": str(uuid.uuid4())}


def body(*changes):
    return {"changes": changes}


def raw(example, head, data=b""):
    """Sends bytes, returns the socket."""
    connection = socket.create_connection(("127.0.0.1", example.port), timeout=10)
    connection.sendall(head.encode() + data)
    return connection
