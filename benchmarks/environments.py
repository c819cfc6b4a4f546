"""The Python of each peer, and what is installed there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE / "apps"), str(HERE.parent / "scripts")]

import peers  # noqa: E402 - it is found by the line above.

__all__ = (
    "DISTRIBUTIONS",
    "ENVIRONMENTS",
    "HERE",
    "Environment",
    "find",
    "mixed",
    "variables",
    "versions",
)

#: What has to be the same for all of them.
DISTRIBUTIONS = ("celery", "kombu", "amqp", "billiard", "vine", "redis")

_VERSIONS = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
def find(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
names = sys.argv[1:]
print(json.dumps({"python": platform.python_version(), **{name: find(name) for name in names}}))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """What a peer is run with.

    Attributes:
        title: What it is called in tables.
        installed: Its name for `scripts/peers.py`; empty for what runs the benchmark.
        app: The module of `apps/` that it runs.
        marks: How its body gives each request its result.
        is_worker: Whether it is a worker of Celery's.
    """

    title: str
    installed: str
    app: str
    marks: str = ""
    is_worker: bool = True


ENVIRONMENTS = {
    "ours": Environment("this package", "", "batch_app", "request"),
    "original": Environment("celery-batches 0.11", "bench-original", "batch_app", "backend"),
    "plain": Environment("plain Celery tasks", "bench-celery", "plain_app"),
    "kombu": Environment("bare kombu", "bench-kombu", "floor", is_worker=False),
    "mixin": Environment("kombu's ConsumerMixin", "bench-kombu", "mixin", is_worker=False),
}


def find(peer: str) -> str:
    """The Python that runs a peer.

    Raises:
        LookupError: If it is not installed.
    """
    name = ENVIRONMENTS[peer].installed
    if not name:
        return sys.executable
    python = peers.find(name)
    if python is None:
        raise LookupError(f"{name} is not installed: run `python scripts/peers.py {name}`")
    return str(python)


def variables(python: str) -> dict[str, str]:
    """The environment variables for a program of this Python."""
    # PYTHONPATH may have this package, which the original must not find in its place.
    kept = os.environ if python == sys.executable else {**os.environ, "PYTHONPATH": ""}
    return {**kept, "C_FORCE_ROOT": "1"}


def versions(peer: str) -> dict[str, str | None]:
    """The versions of Python and of the distributions in the environment of a peer."""
    names = (*DISTRIBUTIONS, "gevent", "celery-batches")
    python = find(peer)
    command = [python, "-c", _VERSIONS, *names]
    output = subprocess.check_output(command, cwd="/", env=variables(python))
    found: dict[str, str | None] = json.loads(output)
    return found


def mixed(installed: dict[str, dict[str, str | None]]) -> dict[str, dict[str, str]]:
    """What differs between the peers that have it, and so would be measured too: by peer."""
    differences = {}
    for name in ("python", *DISTRIBUTIONS):
        found = {peer: had[name] for peer, had in installed.items()}
        present = {peer: version for peer, version in found.items() if version is not None}
        if len(set(present.values())) > 1:
            differences[name] = present
    return differences
