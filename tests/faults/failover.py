"""A Redis that fails over: a replica takes its place, under the same address.

Redis replicates after it has answered: what it has confirmed just before it dies may be lost, of
whatever task. So writes are held up until the replica has all, and only then does it take over.
What is lost then has been lost by those who write.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import urlsplit

import brokers
from faults.journal import read_commands, sizes_of
from harness import DEADLINE
from redis import Redis

#: It writes down each change before it answers, and waits for no second replica.
ON_DISK = ("--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0")


class Succession:
    """A Redis, and those that have taken its place."""

    def __init__(self, server: brokers.Server) -> None:
        self._server = server
        #: The directory of each, and how far its file had got when it took over.
        self._directories: list[tuple[Path, dict[str, int]]] = [(server.directory, {})]

    def commands(self) -> Iterator[list[bytes]]:
        """The changes that were made, whoever made them: see `read_commands`."""
        for directory, starts in self._directories:
            yield from read_commands(directory, starts)

    def start_replica(self) -> brokers.Server:
        """Start a replica, which has what there is, and gets what follows."""
        address = urlsplit(self._server.url)
        of = ("--replicaof", str(address.hostname), str(address.port))
        directory = Path(mkdtemp(prefix="replica-", dir=self._server.directory.parent))
        replica = brokers.start_redis(directory, None, *ON_DISK, *of)
        try:
            with Redis.from_url(replica.url) as client:
                wait_until(lambda: has_synchronised(client))
        except BaseException:
            replica.kill()
            raise
        return replica

    def fail_over(
        self, replica: brokers.Server, held_up: Callable[[Redis], None] | None = None
    ) -> None:
        """End the Redis that there is, and have its replica take its place.

        `held_up` is called with a client of the old one, while that holds up all writes.
        """
        with Redis.from_url(self._server.url) as old, Redis.from_url(replica.url) as new:
            old.execute_command("CLIENT", "PAUSE", int(DEADLINE * 1000), "WRITE")
            if held_up:
                held_up(old)
            wait_until(lambda: offset_of(old, "master") == offset_of(new, "slave"))
            self._directories.append((replica.directory, sizes_of(replica.directory)))
            self._server.kill()
            new.replicaof("NO", "ONE")
            self._take_place(replica, new)

    def _take_place(self, replica: brokers.Server, client: Redis) -> None:
        server = self._server
        changed = {str(server.directory): str(replica.directory)}
        server.command = [changed.get(word, word) for word in server.command]
        server.directory, server.process = replica.directory, replica.process
        port = server.command[server.command.index("--port") + 1]
        client.config_set("port", port)
        wait_until(lambda: server.answers(server.url))


def has_synchronised(client: Redis) -> bool:
    """Whether a replica has all, and has begun to write down what it gets from now on."""
    info = client.info()
    writes = info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]
    return info["master_link_status"] == "up" and not writes


def offset_of(client: Redis, role: str) -> int:
    return int(client.info("replication")[f"{role}_repl_offset"])


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
