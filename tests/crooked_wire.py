"""A loopback proxy that can cut connections, or hold them open and pass nothing on: what networks do to processes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


class Wire:
    """Passes bytes both ways, until told otherwise."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lost: set[socket.socket] = set()
        self._closed = False
        self.refuses = False
        """New connections are taken and closed."""
        self.refused = 0
        self.cut_at: Callable[[bytes], bool] = lambda _: False
        """Bytes from the client after which, passed on, the connection is cut: their answer never comes."""
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self) -> None:
        """From now on nothing passes on the connections that there are; they stay open. New ones are well."""
        for pair in list(self._pairs):
            self._lost.update(pair)

    def cut(self) -> None:
        """End all connections."""
        for pair in list(self._pairs):
            self._end(pair)

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses:
                self.refused += 1
                client.close()
                continue
            try:
                server = socket.create_connection(self._to)
            except OSError:
                client.close()
                continue
            pair = (client, server)
            self._pairs.append(pair)
            threading.Thread(target=self._pass, args=(pair, client, server), daemon=True).start()
            threading.Thread(target=self._pass, args=(pair, server, client), daemon=True).start()

    def _pass(self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source in self._lost:
                    continue
                sink.sendall(data)
                if source is pair[0] and self.cut_at(data):
                    break
        if source not in self._lost or self._closed:
            self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(ValueError):
            self._pairs.remove(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    """A wire to a port of this machine, closed at the end of the block."""
    wire = Wire(port)
    try:
        yield wire
    finally:
        wire.close()
