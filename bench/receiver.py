"""The receiver program, started and asked over its own port."""

import http.client
import json
import os
import pathlib
import subprocess

PROJECT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "release" / "examples" / "bench_receiver"


class Receiver:
    def __init__(self):
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", PROJECT / PROGRAM],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def configure(self, latency_ms=0, record=False):
        """Starts to count from zero."""
        self._ask("POST", "/config", {"latency_ms": latency_ms, "record": record})

    def stats(self):
        return self._ask("GET", "/stats")

    def arrivals(self):
        """{id of the row: microseconds since 1970}, of rows whose key is `id`."""
        return {pk["id"]: arrived for pk, arrived in self._ask("GET", "/arrivals")}

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def _ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()
