"""A name server of a test's own (RFC 1035, as much of it as a resolver's question needs)."""

import contextlib
import itertools
import socket
import struct
import threading

NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5
TYPE_A, CLASS_IN, POINTER_TO_QUESTION = 1, 1, 0xC00C
RESPONSE = 0x8180  # an answer, recursion desired and available


class NameServer:
    """Answers every name alike, as `behave` says; `questions` counts those for an IPv4 address."""

    def __init__(self, host="127.0.0.1", port=53):
        self.questions = 0
        self.behave()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, port))
        threading.Thread(target=self._serve, daemon=True).start()

    def behave(self, *addresses, code=NOERROR, delay=0.0):
        """From now on: these addresses in turn, one for each question; without any there is none, for the reason `code`.
        A delay of None is silence."""
        self.behaviour = itertools.cycle(addresses or [None]), code, delay

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _serve(self):
        while True:
            try:
                question, asker = self.socket.recvfrom(512)
            except OSError:
                return
            if not question:
                return
            answer, delay = self._answer(question)
            if delay is not None:
                threading.Timer(delay, self._send, [answer, asker]).start()

    def _send(self, answer, asker):
        with contextlib.suppress(OSError):  # closed meanwhile
            self.socket.sendto(answer, asker)

    def _answer(self, question):
        """Header, the question again, and at most one address."""
        addresses, code, delay = self.behaviour
        end = question.index(b"\0", 12) + 5
        (kind,) = struct.unpack("!H", question[end - 4:end - 2])
        address = None
        if kind == TYPE_A:
            self.questions += 1
            address = next(addresses)
        header = struct.pack("!HHHHHH", int.from_bytes(question[:2], "big"), RESPONSE | code, 1, int(address is not None), 0, 0)
        record = b"" if address is None else struct.pack(
            "!HHHIH4s", POINTER_TO_QUESTION, TYPE_A, CLASS_IN, 0, 4, socket.inet_aton(address))
        return header + question[12:end] + record, delay
