"""A network that can fail: a TCP proxy between a worker and its broker."""

import contextlib
import select
import socket
from threading import Event, Lock, Thread
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

LOCALHOST = "127.0.0.1"


class Proxy:
    """Forwards connections to the broker of this URL, until it is told to fail."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or LOCALHOST, parts.port or 0)
        self._lock = Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._flowing = Event()
        self._flowing.set()
        self._refusals = 0
        self._listener = socket.create_server((LOCALHOST, 0))
        login, at, _ = parts.netloc.rpartition("@")
        netloc = f"{login}{at}{LOCALHOST}:{self._listener.getsockname()[1]}"
        #: Where the broker is, by way of this.
        self.url = urlunsplit(parts._replace(netloc=netloc))
        self._thread = Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        # Accepting is not interrupted by a close.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.thaw()
        self.cut()
        self._thread.join()

    @property
    def clients(self) -> list[str]:
        """The address and port of each connection, as the broker sees them."""
        with self._lock:
            return ["{}:{}".format(*far.getsockname()) for _, far in self._pairs]

    def cut(self, *, after_all: bool = False) -> int:
        """Close every connection, as a broker does that goes away; return how many.

        `after_all` is to forward first what has been sent.
        """
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    # What has come can still be read then.
                    end.shutdown(socket.SHUT_RD if after_all else socket.SHUT_RDWR)
        return len(pairs)

    def go_away(self, refusals: int) -> None:
        """Close every connection, and so many new ones: then it is back."""
        self._refusals = refusals
        self.cut(after_all=True)

    def come_back(self) -> None:
        """Refuse no connection any more."""
        self._refusals = 0

    def freeze(self) -> None:
        """Forward nothing any more and close nothing, as a network does that drops packets."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Forward what has been held up by `freeze`, and all that follows."""
        self._flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refusals:
                self._refusals -= 1
                near.close()
                continue
            Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        self._flowing.wait()
        try:
            far = socket.create_connection(self._target)
        except OSError:  # The broker is away.
            near.close()
            return
        with self._lock:
            self._pairs.append((near, far))
        with near, far:
            with contextlib.suppress(OSError):
                self._forward(near, far)
            with self._lock, contextlib.suppress(ValueError):
                self._pairs.remove((near, far))

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        while True:
            for ready in select.select([near, far], [], [])[0]:
                data = ready.recv(1 << 16)
                self._flowing.wait()
                if not data:
                    return
                other[ready].sendall(data)
