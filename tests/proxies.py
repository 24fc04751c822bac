"""A TCP proxy in front of a server, which loses what the test says."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from tests.servers import HOST


class Proxy:
    """Passes bytes on. While `loses(request)` is true, the answer never reaches the client.

    The server has executed the command by then. The client sees its connection closed or, if the
    proxy `is_silent`, nothing at all until its patience ends.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.loses: Callable[[bytes], bool] = lambda request: False
        self.is_silent = False
        self.is_cut = False
        """Whether connections are refused, old ones, too."""
        self.lost = 0
        """How many answers were lost."""
        self._sockets: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cut()
        # Its thread would wait on for connections, and for those of whoever has its descriptor
        # next if a signal interrupts it.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def cut(self) -> None:
        """Break all connections and accept no more, until `mend`."""
        self.is_cut = True
        for one in list(self._sockets):
            self._end(one)

    def mend(self) -> None:
        self.is_cut = False

    def lead_to(self, port: int) -> None:
        """Lead new connections to another server; those that are there stay where they are."""
        self._target = port

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
                continue
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection((HOST, self._target))
        self._sockets |= {client, server}
        try:
            self._pass_on(client, server)
        except (OSError, ValueError):
            # One of the two is gone.
            return
        finally:
            self._end(client)
            self._end(server)

    def _pass_on(self, client: Any, server: Any) -> None:
        is_losing = False
        while True:
            readable, _, _ = select.select([client, server], [], [])
            for one in readable:
                data = one.recv(1 << 16)
                if not data:
                    return
                if one is client:
                    is_losing = is_losing or self.loses(data)
                    server.sendall(data)
                elif not is_losing:
                    client.sendall(data)
                else:
                    self.lost += 1
                    if not self.is_silent:
                        return

    def _end(self, one: socket.socket) -> None:
        self._sockets.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
