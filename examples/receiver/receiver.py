#!/usr/bin/python3
"""The hub's HTTP server: takes bodies of changes and hands them to sync_outbox_apply().

Everything that matters happens in the database; this is the door. It checks the token and the signature, bounds sizes, runs one transaction
per request, and answers what the database answered. An answer is sent only after COMMIT. Needs Python 3.11 and psycopg 3
(Debian: python3-psycopg); see README.md beside it.
"""

import argparse
import base64
import contextlib
import errno
import hashlib
import hmac
import json
import logging
import os
import pathlib
import queue
import select
import signal
import socket
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg

log = logging.getLogger("receiver")

MIB = 1024 * 1024
# How far a signed request's time may be from ours, in seconds: bounds how long a recorded request can be sent again.
TOLERANCE = 300
# Seconds in which the head of a request has to be here, then its body; and for how long a connection may be idle.
HEAD, BODY, IDLE = 10, 60, 60
# Seconds that a statement has to end in when it was called off: what runs in it may catch that.
HEED = 1
# Errors of the database that say "not now": the sender tries again by itself. Classes and single codes of SQLSTATE.
NOT_NOW = ("08", "40", "53", "57", "25006", "55P03")


class Refused(Exception):
    """A request that ends here: its status and what the sender reads in {"error": ..}."""

    def __init__(self, status, error, **headers):
        super().__init__(error)
        self.status = status
        self.error = error
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Watch(threading.Thread):
    """Looks after all connections four times a second: cuts off who is too slow, and calls off work for who has left."""

    def __init__(self):
        super().__init__(daemon=True)
        self.lock = threading.Lock()
        self.deadlines = {}  # of sockets
        self.working = {}  # database connections, by the socket of the sender that they work for
        self.called_off = {}  # of these, which are to end, and until when
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(0.25):
            with self.lock:
                for client, until in list(self.deadlines.items()):
                    if time.monotonic() > until:
                        del self.deadlines[client]
                        with contextlib.suppress(OSError):
                            client.shutdown(socket.SHUT_RDWR)
                for client, connection in self.working.items():
                    if client not in self.called_off and has_left(client):
                        self.called_off[client] = time.monotonic() + HEED
                        # Not from here: it connects to the server, which may not answer.
                        threading.Thread(target=cancel, args=(connection,), daemon=True).start()
                for client, until in self.called_off.items():
                    if time.monotonic() > until:
                        hang_up(self.working[client])

    def cut_off_after(self, client, seconds):
        """Gives a connection so long from now; None: as long as it takes."""
        with self.lock:
            self.deadlines.pop(client, None)
            if seconds is not None:
                self.deadlines[client] = time.monotonic() + seconds

    @contextlib.contextmanager
    def calling_off(self, client, connection):
        """A sender that has given up sends again: its old request must not keep a connection that the new one needs."""
        with self.lock:
            self.working[client] = connection
        try:
            yield
        finally:
            with self.lock:
                del self.working[client]
                called_off = self.called_off.pop(client, None) is not None
            if called_off:
                connection.close()  # the cancel may arrive late, and must not meet somebody else's request


def cancel(connection):
    with contextlib.suppress(psycopg.Error):
        connection.cancel()


def hang_up(connection):
    """Ends the wait for an answer. The server looks once a second whether we are there, and then ends the session."""
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as server:
        server.shutdown(socket.SHUT_RDWR)


def has_left(client):
    """Whether the other side has closed the connection, or its half of it."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


class Hub:
    """A few database connections, opened when needed and reused."""

    def __init__(self, dsn, connections, watch):
        self.dsn = dsn
        self.idle = queue.LifoQueue()
        self.free = threading.BoundedSemaphore(connections)
        self.watch = watch

    def apply(self, body, client):
        """The answer to a body of that client's, as JSON text."""
        if not self.free.acquire(timeout=10):
            raise Refused(503, "all database connections are busy", Retry_After="1")
        try:
            if has_left(client):
                raise Refused(503, "the sender has left")
            return self._apply(body, client)
        except psycopg.Error as error:
            raise refusal(error) from error
        finally:
            self.free.release()

    def _apply(self, body, client):
        with contextlib.suppress(queue.Empty):
            connection = self.idle.get_nowait()
            try:
                return self._run(connection, body, client)
            except psycopg.OperationalError:
                if not connection.closed or has_left(client):
                    raise
                # It had been lost while it lay idle. Once more: what was applied is acked and not applied again.
        return self._run(self.connect(), body, client)

    def connect(self):
        connection = psycopg.connect(self.dsn, autocommit=True, application_name="sync_outbox receiver")
        # If this program dies while a statement waits, the server notices, and the statement ends.
        connection.execute("SET client_connection_check_interval = '1s'")
        return connection

    def _run(self, connection, body, client):
        try:
            with self.watch.calling_off(client, connection):
                # One statement is one transaction, and its result is not taken before it has committed. As text: the type
                # json would fail for the whole body where one value in it is nested too deep.
                (answer,) = connection.execute("SELECT sync_outbox_apply_text(%s)::text", [body]).fetchone()
            return answer
        finally:
            if not connection.closed:
                self.idle.put(connection)

    def close(self):
        with contextlib.suppress(queue.Empty):
            while True:
                self.idle.get_nowait().close()


def refusal(error):
    """What a sender is told of a database error."""
    state = error.sqlstate or "08000"  # no code: the connection is gone, or never was
    message = error.diag.message_primary or "the database does not answer"
    if state.startswith(NOT_NOW):
        return Refused(503, message, Retry_After="1")
    if state.startswith("22"):
        return Refused(400, ": ".join(filter(None, [message, error.diag.message_detail])))
    if state.startswith("54"):  # too much at once: the sender halves
        return Refused(413, message)
    log.error("the database says %s: %s", state, message)
    return Refused(500, "the database refused the request; see the receiver's log")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "sync_outbox-receiver"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = IDLE  # for one read or write

    unread = True  # a body that may still be on its way

    def handle_one_request(self):
        # Not more for a first request: who has not shown a token yet is not to keep a place for long.
        self.server.watch.cut_off_after(self.connection, HEAD if self.unread else IDLE)
        super().handle_one_request()

    def parse_request(self):
        self.unread = True
        self.server.watch.cut_off_after(self.connection, HEAD)
        return super().parse_request()

    def finish(self):
        self.server.watch.cut_off_after(self.connection, None)
        super().finish()

    def do_POST(self):
        began = time.monotonic()
        try:
            length = self.admitted_length()
            self.server.watch.cut_off_after(self.connection, BODY)
            body = self.body(length)
            self.server.watch.cut_off_after(self.connection, None)
            answer = self.server.hub.apply(body, self.connection)
            self.answer(200, answer)
            counts = json.loads(answer)
            log.info("%s: %d acked, %d errors, %d conflicts, %.0f ms", self.client_address[0], len(counts["acked"]),
                     len(counts["errors"]), len(counts["conflicts"]), 1000 * (time.monotonic() - began))
        except Refused as refused:
            self.refuse(refused)

    def do_GET(self):
        self.refuse(Refused(405 if self.path == self.server.upload_path else 404, "changes are posted", Allow="POST"))

    do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET

    def handle_expect_100(self):
        """Before a large body comes: say no at once, or let it come."""
        try:
            self.admitted_length()
        except Refused as refused:
            self.refuse(refused)
            return False
        return super().handle_expect_100()

    # The request

    def admitted_length(self):
        """Checks everything that the headers tell; returns the body's length."""
        self.check_token()
        self.check_signed()
        if self.path != self.server.upload_path:
            raise Refused(404, "nothing is here")
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "Content-Type must be application/json", Accept="application/json")
        if self.headers.get("Content-Encoding", "identity").lower() not in ("identity", "gzip"):
            raise Refused(415, "Content-Encoding must be gzip or identity", Accept_Encoding="gzip, identity")
        lengths = self.headers.get_all("Content-Length")
        if lengths is None:
            raise Refused(411, "Content-Length is missing")
        if len(lengths) > 1 or "Transfer-Encoding" in self.headers:
            # What stands in front may believe the other one: then it sees other requests in these bytes than we do.
            raise Refused(400, "the length of the body is given twice")
        length = lengths[0]
        if not is_number(length):
            raise Refused(400, "Content-Length is not a number")
        if int(length) > self.server.max_body:
            raise self.too_large()
        return int(length)

    def check_token(self):
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            token = self.headers.get("X-Upload-Token", "")
        # Takes as long for a wrong first byte as for a wrong last one.
        if not hmac.compare_digest(token.strip().encode("utf-8", "replace"), self.server.token):
            raise Refused(401, "the token is missing or wrong", WWW_Authenticate="Bearer")

    def check_signed(self):
        """What can be told of the signature before the body is there."""
        if not self.server.secrets:
            return
        timestamp = self.headers.get("webhook-timestamp", "")
        if not (self.headers.get("webhook-id") and self.headers.get("webhook-signature") and is_number(timestamp)):
            raise Refused(401, "the request is not signed")
        if abs(time.time() - int(timestamp)) > TOLERANCE:
            raise Refused(401, f"the request was signed more than {TOLERANCE} seconds from now: compare the clocks")

    def check_signature(self, data):
        """Standard Webhooks: HMAC-SHA256 over id.timestamp.body, any of the signatures by any of our secrets."""
        if not self.server.secrets:
            return
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode("latin-1") + data
        given = [signature.encode("latin-1") for signature in self.headers["webhook-signature"].split()]
        known = [b"v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)) for secret in self.server.secrets]
        # Every pair is compared, and each in constant time.
        if not any([hmac.compare_digest(ours, theirs) for ours in known for theirs in given]):
            raise Refused(401, "the signature is wrong")

    def body(self, length):
        data = self.rfile.read(length)
        if len(data) < length:
            raise Refused(400, "the body ended early")
        self.unread = False
        if self.headers.get("Content-Encoding", "").lower() == "gzip":
            data = self.unpacked(data)
        self.check_signature(data)
        if b"\0" in data:
            raise Refused(400, "the body holds a NUL, which is no part of JSON")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(400, "the body is not UTF-8") from None

    def unpacked(self, data):
        """Never more than the limit, however small the compressed body is."""
        gzip = zlib.decompressobj(wbits=31)
        try:
            plain = gzip.decompress(data, self.server.max_body + 1)
        except zlib.error:
            raise Refused(400, "the body is not gzip") from None
        if len(plain) > self.server.max_body:
            raise self.too_large()
        if not gzip.eof or gzip.unused_data:
            raise Refused(400, "the body is not one gzip stream")
        return plain

    def too_large(self):
        return Refused(413, f"the body is larger than {self.server.max_body} bytes")

    # The answer

    def answer(self, status, body, headers=None):
        data = body.encode("utf-8")
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        # One write, one packet.
        self._headers_buffer.append(b"\r\n" + (b"" if self.command == "HEAD" else data))
        self.flush_headers()

    def refuse(self, refused):
        log.warning("%s: %d %s", self.client_address[0], refused.status, refused.error)
        self.close_connection |= self.unread  # what is left of the body is not the next request
        self.answer(refused.status, json.dumps({"error": refused.error}), refused.headers)
        if self.unread:
            self.linger()

    def linger(self):
        """Reads on for a moment: a close with unread data would reset the connection, and the answer would be lost."""
        self.connection.settimeout(1)
        until = time.monotonic() + 5
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while time.monotonic() < until and self.connection.recv(64 * 1024):
                pass

    def log_message(self, format, *arguments):
        """The request line is not logged: do_POST says more."""

    def log_error(self, format, *arguments):
        log.info("%s: %s", self.client_address[0], format % arguments)


def is_number(text):
    """Decimal digits, and not more than any number here has: int() refuses thousands of them."""
    return text.isascii() and text.isdigit() and len(text) <= 18


class OneLine(logging.Formatter):
    """Each entry stays one line and shows what it holds: texts of senders cannot look like entries, nor move a cursor."""

    def format(self, record):
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().format(record))


class Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for requests that are being applied
    request_queue_size = 64
    allow_reuse_address = True

    def __init__(self, address, hub, watch, clients, token, secrets, upload_path, max_body):
        super().__init__(address, Handler)
        self.hub = hub
        self.watch = watch
        self.clients = clients
        self.token = token
        self.secrets = secrets
        self.upload_path = upload_path
        self.max_body = max_body
        self.open = set()

    def get_request(self):
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # The connection stays in the queue: without a pause it would be tried again at once, and for ever.
                log.error("cannot take a connection: %s", error)
                time.sleep(0.5)
            raise

    def process_request(self, request, client_address):
        if len(self.open) >= self.clients:
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return self.shutdown_request(request)
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            log.info("%s: %s", client_address[0], error)  # the sender went away
        else:
            log.exception("%s", client_address[0])

    def finish(self):
        """Ends idle connections and waits for requests at work, which still get their answer."""
        self.watch.ended.set()
        self.watch.join()
        for request in list(self.open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RD)
        self.server_close()
        self.hub.close()


def read_token(path):
    token = pathlib.Path(path).read_text("utf-8").strip() if path else os.environ.get("SYNC_UPLOAD_TOKEN", "")
    if not token:
        sys.exit("no token: name a file with --token-file, or set SYNC_UPLOAD_TOKEN")
    return token.encode()


def read_secrets(path):
    """The signing secrets of a file, one whsec_<base64> a line: two of them while they are exchanged."""
    secrets = []
    for line in pathlib.Path(path).read_text("utf-8").split() if path else []:
        encoded = line.removeprefix("whsec_")
        try:
            secrets.append(base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True))
        except ValueError:
            sys.exit("the signing secret is not whsec_ and base64")
    if path and not secrets:
        sys.exit("the file of --signing-secret-file holds no secret")
    return secrets


def listen_address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def main():
    parser = argparse.ArgumentParser(description="Receives changes over HTTP and applies them with sync_outbox_apply().")
    parser.add_argument("--listen", type=listen_address, default=("127.0.0.1", 8080), metavar="HOST:PORT",
                        help="default 127.0.0.1:8080; put a TLS proxy in front of anything else; port 0 takes a free one")
    parser.add_argument("--dsn", default="", help="the hub's database; default: libpq's PG* environment variables")
    parser.add_argument("--token-file", help="file with the token that senders show; default: SYNC_UPLOAD_TOKEN")
    parser.add_argument("--signing-secret-file", help="file with whsec_ secrets, one a line; requests must be signed with one of them")
    parser.add_argument("--path", default="/api/sync/upload_outbox", help="default %(default)s")
    parser.add_argument("--connections", type=int, default=4, help="most database connections, default %(default)s")
    parser.add_argument("--clients", type=int, default=100, help="most connections of senders at a time, default %(default)s")
    parser.add_argument("--max-body", type=int, default=32 * MIB, metavar="BYTES",
                        help="largest body, also after gzip, default %(default)s")
    arguments = parser.parse_args()

    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(OneLine("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[to_stderr])
    watch = Watch()
    hub = Hub(arguments.dsn, arguments.connections, watch)
    server = Server(arguments.listen, hub, watch, arguments.clients, read_token(arguments.token_file),
                    read_secrets(arguments.signing_secret_file), arguments.path, arguments.max_body)
    watch.start()

    def stop(*_):
        # From another thread: shutdown() waits for the loop that runs in this one.
        threading.Thread(target=server.shutdown).start()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log.info("listening on http://%s:%d%s", *server.server_address[:2], arguments.path)
    server.serve_forever(poll_interval=0.1)
    server.finish()
    log.info("stopped")


if __name__ == "__main__":
    main()
