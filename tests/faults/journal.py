"""What Redis itself did with each message, read from its append-only file.

Redis writes down each change before it answers, so this is proof of what the broker did, whoever
was killed meanwhile. A message that waits is in a list; kombu takes it from there (``BRPOP``, which
is written down as ``RPOP``), and with a command of its own then notes it as unacknowledged
(``HSET``). In between nobody has it but the answer that is on its way: if the connection is cut,
or the worker or the broker is killed then, it is lost, of whatever task it is.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path


def read_commands(
    directory: Path, starts: Mapping[str, int] | None = None
) -> Iterator[list[bytes]]:
    """Read the commands of a Redis whose directory this is, which has never rewritten them.

    Redis may be in the middle of writing the last of them: this is left out. `starts` has the sizes
    of files from before, whose contents until then are left out.
    """
    for path in _files(directory):
        data = path.read_bytes()
        start = (starts or {}).get(path.name, 0)
        while (command := _command_at(data, start)) is not None:
            words, start = command
            yield words


def sizes_of(directory: Path) -> dict[str, int]:
    """How far a Redis has written its commands, by the names of its files."""
    return {path.name: path.stat().st_size for path in _files(directory)}


def _files(directory: Path) -> list[Path]:
    return sorted((directory / "appendonlydir").glob("*.incr.aof"))


def _command_at(data: bytes, start: int) -> tuple[list[bytes], int] | None:
    """Return the words of the command there, and where the next one begins; None if it is cut."""
    words: list[bytes] = []
    left = 1
    while left:
        end = data.find(b"\r\n", start)
        if end < 0:
            return None
        kind, number = data[start : start + 1], int(data[start + 1 : end])
        start = end + 2
        left -= 1
        if kind == b"*":
            left += number
        else:
            words.append(data[start : start + number])
            start += number + 2
            if start > len(data):
                return None
    return words, start


class Journal:
    """What has become of each message of a queue, by its id, according to the commands."""

    def __init__(self, commands: Iterator[list[bytes]], prefix: str, queue: str) -> None:
        #: ``waiting``, ``popped``, ``unacked`` or ``acked``.
        self.states: dict[str, str] = {}
        #: What was put into the queue and had been there, without being sent back.
        self.pushed_twice: set[str] = set()
        self._queue = f"{prefix}{queue}".encode()
        self._unacked = f"{prefix}unacked".encode()
        self._lists: dict[bytes, deque[str]] = {}
        self._ids: dict[bytes, str] = {}
        #: What this transaction takes out of the unacknowledged ones.
        self._taken_out: set[str] = set()
        for name, *arguments in commands:
            handler = getattr(self, f"_{name.decode().lower()}", None)
            if handler is not None:
                handler(*arguments)

    def of(self, state: str) -> set[str]:
        return {number for number, now in self.states.items() if now == state}

    def _multi(self) -> None:
        self._taken_out.clear()

    _exec = _multi

    def _lpush(self, key: bytes, *payloads: bytes) -> None:
        for payload in payloads:
            self._push(key, payload, left=True)

    def _rpush(self, key: bytes, *payloads: bytes) -> None:
        for payload in payloads:
            self._push(key, payload, left=False)

    def _push(self, key: bytes, payload: bytes, *, left: bool) -> None:
        if not key.startswith(self._queue):
            return
        number = _id_of(json.loads(payload))
        if number in self.states and number not in self._taken_out:
            self.pushed_twice.add(number)
        waiting = self._lists.setdefault(key, deque())
        (waiting.appendleft if left else waiting.append)(number)
        self.states[number] = "waiting"

    def _rpop(self, key: bytes) -> None:
        if key in self._lists:
            self.states[self._lists[key].pop()] = "popped"

    def _hset(self, key: bytes, *pairs: bytes) -> None:
        if key == self._unacked:
            for tag, noted in zip(pairs[::2], pairs[1::2], strict=True):
                number = _id_of(json.loads(noted)[0])
                self._ids[tag] = number
                self.states[number] = "unacked"

    def _hdel(self, key: bytes, *tags: bytes) -> None:
        if key == self._unacked:
            for tag in tags:
                number = self._ids[tag]
                self._taken_out.add(number)
                self.states[number] = "acked"


def _id_of(payload) -> str:
    return str(payload["headers"]["id"])
