"""A link of so many bytes a second between a sender and a receiver, in both directions."""

import socket
import threading
import time


class SlowLink:
    """Listens on a port of loopback and hands on what comes, no faster than `rate` bytes a second."""

    def __init__(self, receiver, rate):
        self.receiver, self.rate = receiver, rate
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self.listener.getsockname()
        self.url = f"http://{self.host}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection((self.receiver.host, self.receiver.port))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._hand_on, args=[source, sink], daemon=True).start()

    def _hand_on(self, source, sink):
        piece = max(1, self.rate // 50)
        try:
            while data := source.recv(piece):
                sink.sendall(data)
                time.sleep(len(data) / self.rate)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for end in (source, sink):
                end.close()
