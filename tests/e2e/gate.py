"""A TCP proxy before a real S3 server that can hold chosen requests, or break all connections."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Gate:
    """Passes everything on, until it is told otherwise.

    `hold(text)`: a request in whose beginning that text stands is not passed on until `open()`; `held` is set then.
    `breaks(text)`: such a request's connection is closed, and all later ones, until `open()`.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.held = threading.Event()
        self._hold = self._break = b""
        self._broken = False
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def hold(self, text: str) -> None:
        self.held.clear()
        self._hold = text.encode()
        self._open.clear()

    def breaks(self, text: str) -> None:
        self._break = text.encode()

    def open(self) -> None:
        self._hold = self._break = b""
        self._broken = False
        self._open.set()

    def close(self) -> None:
        self.open()
        # shutdown wakes the thread that waits in accept; close alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            _shut(each)
        for thread in self._threads:
            thread.join()

    def _start(self, work, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, socket.create_connection(self._target) as server:
                self._sockets.append(server)
                self._pass_on(client, server)
        except OSError:
            pass

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    source, sink = key.fileobj, key.data
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is client and not self._admitted(data):
                        return
                    sink.sendall(data)

    def _admitted(self, data: bytes) -> bool:
        """Whether a piece of a request may go on. Waits as long as it is held."""
        head = data[:300]
        if self._break and self._break in head:
            self._broken = True
        if self._broken:
            return False
        if self._hold and self._hold in head:
            self.held.set()
            self._open.wait()
        return True


def _shut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)


@contextmanager
def gate_before(endpoint: str) -> Iterator[Gate]:
    """A gate before a server."""
    place = urlsplit(endpoint)
    gate = Gate((str(place.hostname), int(place.port or 80)))
    try:
        yield gate
    finally:
        gate.close()
