"""Get Debian packages onto this machine: installed as root, unpacked into a directory otherwise.

Used by `venv.py` and `services.py` on machines where something the tests need is missing. The
sources and the proxies are the ones the machine is set up with. Any Python from 3.10 runs it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

POLICY = Path("/usr/sbin/policy-rc.d")  # Asked by Debian before a package starts its service.
ENVIRONMENT = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


class Unavailable(Exception):
    """These packages cannot be had here; the message says why."""


def is_root() -> bool:
    return os.geteuid() == 0


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    """The standard output of a command. Raises `Unavailable` with its last words."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise Unavailable(f"{' '.join(str(word) for word in command)}: {words}")
    return done.stdout


def _require(*tools: str) -> None:
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        raise Unavailable(f"not a Debian machine: no {' and no '.join(missing)}")


@contextmanager
def _services_stay_down() -> Iterator[None]:
    """Installed services are not started: there may be no init system, and no service is wanted."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def install(*packages: str) -> None:
    """Install packages as root, without starting any service they bring."""
    _require("apt-get")
    print(f"apt-get install {' '.join(packages)}", file=sys.stderr, flush=True)
    command = ("apt-get", "install", "-y", "--no-install-recommends", *packages)
    with _services_stay_down():
        try:
            _run(*command)
        except Unavailable:  # No package lists yet, or old ones.
            _run("apt-get", "update")
            _run(*command)


def unpack(root: Path, *packages: str, dependencies: bool = True) -> None:
    """Download packages, with what they need and the machine lacks, and unpack them in `root`."""
    _require("apt-get", "dpkg")
    print(f"unpacking {' '.join(packages)} in {root}", file=sys.stderr, flush=True)
    with TemporaryDirectory() as name:
        work = Path(name)
        apt = _private_apt(work)
        _run(*apt, "update")
        wanted = _to_install(apt, packages) if dependencies else list(packages)
        debs = work / "debs"
        debs.mkdir()
        _run(*apt, "download", *wanted, cwd=debs)
        root.mkdir(parents=True, exist_ok=True)
        for deb in sorted(debs.glob("*.deb")):
            _run("dpkg", "-x", deb, root)


def _private_apt(work: Path) -> list[str]:
    """An `apt-get` whose package lists and cache are in `work`, which needs no privileges."""
    for needed in ("lists/partial", "cache/archives/partial"):
        (work / needed).mkdir(parents=True)
    return [
        "apt-get",
        *("-o", f"Dir::State={work}"),
        *("-o", f"Dir::State::lists={work / 'lists'}"),
        *("-o", "Dir::State::status=/var/lib/dpkg/status"),
        *("-o", f"Dir::Cache={work / 'cache'}"),
        *("-o", "APT::Sandbox::User=root"),  # Root's own downloads go to a directory of root's.
        *("-o", "Debug::NoLocking=1"),
    ]


def _to_install(apt: list[str], packages: tuple[str, ...]) -> list[str]:
    """What apt would install anew for `packages`; what it would only upgrade is there already."""
    plan = _run(*apt, "install", "--simulate", "--no-install-recommends", *packages)
    return re.findall(r"^Inst (\S+) \(", plan, flags=re.MULTILINE)
