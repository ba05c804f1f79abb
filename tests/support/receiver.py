"""A scriptable receiver, written from the wire's description alone: of a change it knows schema, table, op, pk, data and
dedup_key, and needs no more.

What it does with a request is a behaviour: a function of (request, wire), see behaviours.py."""

import gzip
import json
import socket
import struct
import threading
import time

from . import behaviours
from .wait import wait_for


class Request:
    """One request as it came: `raw` is the body on the wire, `body` its JSON, `applied` the keys the receiver took,
    `began` the time of its first line."""

    def __init__(self, number, connection, method, path, headers, raw):
        self.number = number
        self.connection = connection
        self.method = method
        self.path = path
        self.headers = headers
        self.raw = raw
        self.arrived = time.monotonic()
        self.began = time.time()
        self.applied = []

    @property
    def text(self):
        packed = self.headers.get("content-encoding") == "gzip"
        return (gzip.decompress(self.raw) if packed else self.raw).decode("utf-8")

    @property
    def body(self):
        return json.loads(self.text)

    @property
    def changes(self):
        return self.body["changes"]

    @property
    def keys(self):
        return [change["dedup_key"] for change in self.changes]


class Wire:
    """The way back to the sender, down to the bytes."""

    def __init__(self, connection):
        self.connection = connection
        self.open = True

    def send(self, data):
        self.connection.sendall(data)

    def answer(self, status, body=b"", headers=None, reason="Status", size=None):
        """A whole response, in pieces of `size` bytes; a str or bytes body goes as it is, anything else as JSON."""
        if not isinstance(body, (str, bytes)):
            body = json.dumps(body)
        data = body.encode() if isinstance(body, str) else body
        fields = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
        message = f"HTTP/1.1 {status} {reason}\r\n{head}\r\n".encode() + data
        for begin in range(0, len(message), size or len(message)):
            self.send(message[begin:begin + (size or len(message))])

    def close(self):
        self.open = False

    def reset(self):
        """Ends the connection with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.open = False


class Receiver:
    """Listens on a port of loopback that stays its own over stop() and start()."""

    def __init__(self, behaviour=behaviours.ack_all, tls=None, host="127.0.0.1", port=0):
        self.behaviour = behaviour
        self.tls = tls
        self.host = host
        self.port = port
        self.requests = []
        self.connections = 0
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.alive = set()
        self.listener = None
        self.start()

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    # Life

    def start(self):
        self.listener = socket.create_server((self.host, self.port), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self.listener], daemon=True).start()
        return self

    def stop(self):
        """Gone, as far as the sender can see: nothing listens, and open connections are closed."""
        if self.listener is None:
            return
        # shutdown, because close alone leaves a thread in accept() holding the port.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.listener = None
        with self.lock:
            alive = list(self.alive)
        for connection in alive:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.released.set()
        self.stop()

    # Scripts

    def script(self, *steps, then=behaviours.ack_all):
        """One behaviour per request, in order of arrival; after them `then`."""
        remaining = list(steps)

        def step(request, wire):
            with self.lock:
                behaviour = remaining.pop(0) if remaining else then
            behaviour(request, wire)
        self.behaviour = step

    def hang(self, request, wire):
        """A behaviour: no answer until `released` is set, then none at all."""
        self.released.wait()
        wire.close()

    # What came

    @property
    def changes(self):
        """Every change of every request, repeats included."""
        return [change for request in list(self.requests) for change in request.changes]

    def wait_for_requests(self, count, deadline=10):
        wait_for(lambda: len(self.requests) >= count, deadline, f"{count} requests, there are {len(self.requests)}")

    # Sockets

    def _accept(self, listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self.lock:
                self.connections += 1
                number = self.connections
            threading.Thread(target=self._serve, args=[connection, number], daemon=True).start()

    def _serve(self, connection, number):
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with self.lock:
                self.alive.add(connection)
            self._requests(connection, number)
        except (OSError, ValueError):
            pass  # the sender left, TLS did not come about, or it was no HTTP: the sender's test says what it saw
        finally:
            with self.lock:
                self.alive.discard(connection)
            connection.close()

    def _requests(self, connection, number):
        wire = Wire(connection)
        stream = connection.makefile("rb")
        while wire.open:
            request = self._read(stream, number)
            if request is None:
                return
            with self.lock:
                request.number = len(self.requests)
                self.requests.append(request)
            self.behaviour(request, wire)

    def _read(self, stream, number):
        line = stream.readline()
        if not line:
            return None
        began = time.time()
        method, path, _ = line.decode().split()
        headers = {}
        while (line := stream.readline().strip()):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        # No chunked bodies: a plain receiver does not know them.
        request = Request(None, number, method, path, headers, stream.read(int(headers["content-length"])))
        request.began = began
        return request
