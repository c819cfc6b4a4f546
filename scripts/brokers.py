"""Private servers of Redis, RabbitMQ and PostgreSQL, which tests may stop, kill and restart.

`start_redis(directory)` and the like return a `Server` that answers, or raise `Missing`. Their
programs are found on this machine, or where `services.py` unpacked them. They listen on 127.0.0.1
only. Any Python from 3.10 runs it.
"""

import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

HOME = Path(__file__).resolve().parents[1] / ".services"
UNPACKED = HOME / "root"
LOCALHOST = "127.0.0.1"


class Missing(Exception):
    """This service is not to be had here; the message says why."""


def redis_answers(url: str) -> bool:
    """Whether a Redis at `url` answers a PING."""
    parts = urlsplit(url)
    login = [unquote(word) for word in (parts.username, parts.password) if word]
    with suppress(OSError), _connect(url, 6379) as connection:
        if login:
            connection.sendall(f"AUTH {' '.join(login)}\r\n".encode())
            connection.recv(100)
        connection.sendall(b"PING\r\n")
        return connection.recv(100).startswith(b"+PONG")
    return False


def rabbitmq_answers(url: str) -> bool:
    """Whether an AMQP 0-9-1 broker at `url` speaks the protocol and accepts the login."""
    parts = urlsplit(url)
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    login = f"\0{user}\0{password}".encode()
    start_ok = b"\0\x0a\0\x0b" + b"\0\0\0\0" + b"\x05PLAIN"
    start_ok += len(login).to_bytes(4, "big") + login + b"\x05en_US"
    with suppress(OSError), _connect(url, 5672) as connection, connection.makefile("rb") as replies:
        connection.sendall(b"AMQP\0\0\x09\x01")
        if _method(replies.read(7), replies.read) != b"\0\x0a\0\x0a":  # connection.start
            return False
        connection.sendall(b"\x01\0\0" + len(start_ok).to_bytes(4, "big") + start_ok + b"\xce")
        return _method(replies.read(7), replies.read) == b"\0\x0a\0\x1e"  # connection.tune
    return False


def postgresql_answers(url: str) -> bool:
    """Whether a PostgreSQL server at `url` has started, and lets this user log in."""
    parts = urlsplit(url)
    user, database = unquote(parts.username or "postgres"), parts.path.lstrip("/") or "postgres"
    words = b"".join(word.encode() + b"\0" for word in ("user", user, "database", database))
    start_up = (196608).to_bytes(4, "big") + words + b"\0"  # Version 3.0 of the protocol.
    with suppress(OSError), _connect(url, 5432) as connection:
        connection.sendall((len(start_up) + 4).to_bytes(4, "big") + start_up)
        return connection.recv(1) == b"R"  # "E" while the server starts.
    return False


def _method(header: bytes, read: Callable[[int], bytes]) -> bytes:
    """The class and method of the AMQP frame that `header` opens."""
    return read(int.from_bytes(header[3:7], "big") + 1)[:4] if header[:1] == b"\x01" else b""


def _connect(url: str, port: int) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or LOCALHOST, parts.port or port), timeout=5)


@dataclass
class Server:
    """A broker of our own: started in its directory, and stopped, killed or restarted at will."""

    url: str
    command: list[str]
    directory: Path
    answers: Callable[[str], bool]
    environment: dict[str, str] = field(default_factory=dict)
    user: str | None = None  # Who runs it, if it refuses to be run by root.
    process: "subprocess.Popen[bytes] | None" = None

    def start(self, *, timeout: float = 90) -> "Server":
        """Start it and wait until it answers, `timeout` seconds at most."""
        log = self.directory / "output.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env={**_environment(), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **_as_user(self.user),
            )
        deadline = time.monotonic() + timeout
        while not self.answers(self.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise Missing(f"{self.command[0]} does not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        return self

    def stop(self, *, timeout: float = 60) -> None:
        """Stop it in good order, its data kept."""
        if self.process:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """End it at once, as a crash does. What was not on disk is lost."""
        if self.process:
            kill_group(self.process.pid)
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """Stop it and start it with the same port and directory."""
        self.stop()
        self.start()


def start_redis(directory: Path, port: int | None = None, *options: str) -> Server:
    """Start a Redis that keeps nothing on disk, unless `options` for redis-server say otherwise."""
    port = port or free_port()
    directory.mkdir(parents=True, exist_ok=True)
    command = [find_program("redis-server"), "--bind", LOCALHOST, "--port", str(port)]
    command += ["--dir", str(directory), "--save", "", "--appendonly", "no", *options]
    return Server(f"redis://{LOCALHOST}:{port}/0", command, directory, redis_answers).start()


def start_rabbitmq(directory: Path, port: int | None = None, *options: str) -> Server:
    """Start a RabbitMQ node of its own, with its own port mapper (epmd), user home and cookie.

    `options` are for its Erlang machine, such as ``"-rabbit consumer_timeout 4000"``.
    """
    port = port or free_port()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rabbitmq.conf").write_text(f"listeners.tcp.1 = {LOCALHOST}:{port}\n")
    (directory / "enabled_plugins").write_text("[].\n")
    (directory / "rabbitmq-env.conf").touch()  # In place of the machine's.
    epmd_port = str(free_port())
    environment = {
        "HOME": str(directory),
        "ERL_EPMD_ADDRESS": LOCALHOST,
        "ERL_EPMD_PORT": epmd_port,
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_NODENAME": f"celery-batches-{port}@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(
            ("-kernel inet_dist_use_interface {127,0,0,1}", *options)
        ),
        "RUNNING_UNDER_SYSTEMD": "true",  # The start script becomes the server, so one process id.
    }
    server, epmd = (shlex.quote(find_program(name)) for name in ("rabbitmq-server", "epmd"))
    command = ["sh", "-c", f"{epmd} -port {epmd_port} & exec {server}"]
    url = f"amqp://guest:guest@{LOCALHOST}:{port}//"
    return Server(url, command, directory, rabbitmq_answers, environment).start()


def start_postgresql(directory: Path, port: int | None = None) -> Server:
    """Start a PostgreSQL with a new, empty cluster. It refuses root, who has `_somebody` run it."""
    port = port or free_port()
    user = _somebody() if os.geteuid() == 0 else None
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / "data"
    shutil.rmtree(data, ignore_errors=True)
    if user is not None:
        data = Path(tempfile.mkdtemp(prefix="postgresql-"))  # Others may not enter ours.
        shutil.chown(data, user)
    initdb = [find_program("initdb"), "--pgdata", str(data), "--username=postgres", "--auth=trust"]
    initdb += ["--no-sync", "--encoding=UTF8", "--locale=C"]
    done = subprocess.run(
        initdb, cwd="/", env=_environment(), capture_output=True, text=True, **_as_user(user)
    )
    if done.returncode:
        raise Missing(f"initdb does not make a cluster:\n{done.stderr[-2000:]}")
    options = {"fsync": "off", "listen_addresses": LOCALHOST, "unix_socket_directories": ""}
    command = [find_program("postgres"), "-D", str(data), "-p", str(port)]
    command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    url = f"postgresql://postgres@{LOCALHOST}:{port}/postgres"
    return Server(url, command, data, postgresql_answers, user=user).start()


def _as_user(user: str | None) -> dict[str, Any]:
    """The arguments for a process of this user."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _somebody() -> str:
    """A user who is not root: PostgreSQL's own, if the machine has one."""
    with suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


def free_port() -> int:
    with socket.create_server((LOCALHOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def find_program(name: str) -> str:
    """Its path, on this machine or unpacked by us. Raises `Missing`."""
    # RabbitMQ's own directory first: the command in /usr/sbin changes the user, and wants root.
    first = ["/usr/lib/rabbitmq/bin", *_postgresql_directories(Path("/"))]
    path = os.pathsep.join([*first, _environment()["PATH"]])
    if found := shutil.which(name, path=path):
        return found
    raise Missing(f"{name} is not installed")


def _postgresql_directories(root: Path) -> list[str]:
    """Where Debian has the programs of PostgreSQL, the newest version first."""
    found = root.glob("usr/lib/postgresql/*/bin")
    return sorted(map(str, found), key=lambda path: int(path.split("/")[-2]), reverse=True)


def _environment() -> dict[str, str]:
    """The environment, in which the programs and libraries that we unpacked are found too."""
    sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"]
    unpacked = [str(UNPACKED / path) for path in ("usr/lib/rabbitmq/bin", "usr/bin", "usr/sbin")]
    unpacked += _postgresql_directories(UNPACKED)
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *sbin, *unpacked])
    libraries = map(str, [*UNPACKED.glob("usr/lib/*-linux-*"), *UNPACKED.glob("lib/*-linux-*")])
    inherited = os.environ.get("LD_LIBRARY_PATH")
    found = os.pathsep.join([*filter(None, [inherited]), *libraries])
    return {**os.environ, "PATH": path, **({"LD_LIBRARY_PATH": found} if found else {})}


def kill_group(pid: int) -> None:
    """End a process and the children that stayed in its group."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
