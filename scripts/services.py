"""Redis, RabbitMQ and PostgreSQL for the tests: found where they are, or started privately.

    services.py up         make sure of all, and say what was done; writes .services/env
    services.py env        print TEST_REDIS_URL=... and the like
    services.py down       stop what `up` started, and nothing else
    services.py run CMD    up, CMD with those variables, down
    services.py fetch      get the programs from Debian where they are missing

Looked for in turn: the variables themselves; a server that answers on the standard port; a program
to start on a free port, with its data under .services/. A PostgreSQL on the standard port is left
alone, since nobody has said who may log in. With CI=true or INSTALL_SERVICES=1 a
missing program is fetched from Debian first, and with CI=true a missing service is an error. Any
Python from 3.10 runs it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import debian
from brokers import (
    HOME,
    LOCALHOST,
    UNPACKED,
    Missing,
    Server,
    find_program,
    kill_group,
    postgresql_answers,
    rabbitmq_answers,
    redis_answers,
    start_postgresql,
    start_rabbitmq,
    start_redis,
)


@dataclass(frozen=True)
class Service:
    """A kind of server: where it is looked for, and how it is had otherwise."""

    variable: str
    package: str
    program: str
    standard_url: str | None
    answers: Callable[[str], bool]
    start: Callable[[Path], Server]


SERVICES = {
    "redis": Service(
        "TEST_REDIS_URL",
        "redis-server",
        "redis-server",
        f"redis://{LOCALHOST}:6379/15",
        redis_answers,
        start_redis,
    ),
    "rabbitmq": Service(
        "TEST_RABBITMQ_URL",
        "rabbitmq-server",
        "rabbitmq-server",
        f"amqp://guest:guest@{LOCALHOST}:5672//",
        rabbitmq_answers,
        start_rabbitmq,
    ),
    "postgresql": Service(
        "TEST_POSTGRESQL_URL", "postgresql", "initdb", None, postgresql_answers, start_postgresql
    ),
}
SCHEMES = ("redis", "amqp", "pyamqp", "postgresql")
IN_CI = os.environ.get("CI") == "true"
MAY_INSTALL = IN_CI or os.environ.get("INSTALL_SERVICES") == "1"


def provide(name: str, service: Service) -> tuple[str, str]:
    """The URL of this service, and a word on where it comes from. Raises `Missing`."""
    if url := os.environ.get(service.variable):
        if urlsplit(url).scheme in SCHEMES and not service.answers(url):
            sys.exit(f"{service.variable} is set, and nothing answers there as it should")
        return url, f"from {service.variable}"
    if (ours := _read_state().get(name)) and _is_running(ours):
        return str(ours["url"]), "started earlier"
    if service.standard_url and service.answers(service.standard_url):
        return service.standard_url, "found running"
    if MAY_INSTALL:
        fetch(service)
    server = service.start(HOME / name)
    assert server.process
    pid = server.process.pid
    ours = {"url": server.url, "pid": pid, "born": _born(pid), "directory": str(server.directory)}
    _write_state({**_read_state(), name: ours})
    return server.url, f"started, process {pid}"


def fetch(service: Service) -> None:
    """Get a missing program: installed as root, unpacked under .services/root otherwise."""
    package = service.package
    with suppress(Missing):
        find_program(service.program)
        return
    try:
        if debian.is_root():
            debian.install(package)
            return
        debian.unpack(UNPACKED, package)
    except debian.Unavailable as error:
        raise Missing(f"{package} cannot be fetched: {error}") from error
    erl = UNPACKED / "usr/lib/erlang/bin/erl"
    if erl.exists():  # It has the place where Debian installs it written into it.
        here = f"ROOTDIR='{UNPACKED}/usr/lib/erlang'"
        erl.write_text(erl.read_text().replace("ROOTDIR=/usr/lib/erlang", here))


def up() -> dict[str, str]:
    """Make sure of every service; returns the environment variables for the tests."""
    found, missing = {}, []
    for name, service in SERVICES.items():
        try:
            found[service.variable], origin = provide(name, service)
            print(f"{name}: {found[service.variable]} ({origin})", file=sys.stderr)
        except Missing as error:
            missing.append(name)
            print(f"*** {name}: {error}", file=sys.stderr)
    HOME.mkdir(exist_ok=True)
    (HOME / "env").write_text("".join(f"{name}={url}\n" for name, url in found.items()))
    if missing and IN_CI:
        sys.exit(f"*** CI needs {' and '.join(missing)}.")
    if missing:
        print(f"*** Tests that need {' or '.join(missing)} will be SKIPPED.", file=sys.stderr)
    return found


def down(*names: str) -> None:
    """Stop those of `names` that `up` started."""
    state = _read_state()
    for name in names:
        ours = state.pop(name, None)
        if ours and _is_running(ours):
            _stop(int(ours["pid"]))
            print(f"{name}: stopped", file=sys.stderr)
        if ours and not Path(str(ours["directory"])).is_relative_to(HOME):
            shutil.rmtree(str(ours["directory"]), ignore_errors=True)
    _write_state(state)
    (HOME / "env").unlink(missing_ok=True)


def run(command: list[str]) -> int:
    """Run a command with the services up; stop those that were not up before."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    before = _read_state()
    try:
        return subprocess.run(command, env={**os.environ, **up()}).returncode
    finally:
        down(*(name for name in SERVICES if name not in before))


def _stop(pid: int, *, timeout: float = 60) -> None:
    born, deadline = _born(pid), time.monotonic() + timeout
    os.kill(pid, signal.SIGTERM)
    while born and _born(pid) == born and time.monotonic() < deadline:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.1)
    kill_group(pid)


def _born(pid: int) -> str:
    """When the process started, which with its id tells it from every other. Empty: it is gone."""
    if not Path("/proc/self/stat").exists():
        return subprocess.getoutput(f"ps -o lstart= -p {pid}").strip()
    with suppress(OSError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state == "Z" else rest[18]
    return ""


def _is_running(ours: dict[str, str | int]) -> bool:
    return _born(int(ours["pid"])) == ours["born"] != ""


def _read_state() -> dict[str, dict[str, str | int]]:
    path = HOME / "state.json"
    state: dict[str, dict[str, str | int]] = json.loads(path.read_text()) if path.exists() else {}
    return state


def _write_state(state: dict[str, dict[str, str | int]]) -> None:
    HOME.mkdir(exist_ok=True)
    (HOME / "state.json").write_text(json.dumps(state))


def main(arguments: list[str]) -> int:
    match arguments:
        case ["up"]:
            up()
        case ["env"]:
            path = HOME / "env"
            sys.stdout.write(path.read_text() if path.exists() else "")
        case ["down"]:
            down(*SERVICES)
        case ["fetch"]:
            for service in SERVICES.values():
                fetch(service)
        case ["run", *command] if command:
            return run(command)
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
