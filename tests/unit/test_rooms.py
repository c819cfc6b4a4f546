"""`make lint` holds the rooms apart: each rule is broken in a copy of the package, and is seen."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(
    not (BIN / "lint-imports").exists(), reason="import-linter is not installed: see `make lint`"
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sources that may be broken."""
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "celery_batches", tmp_path / "celery_batches", ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def problems(copy: Path, *command: str) -> str:
    """What one of the linters says of the copy."""
    run = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=copy, capture_output=True, text=True, check=False
    )
    said = run.stdout + run.stderr
    assert bool(run.returncode) == bool("BROKEN" in said or "Found" in said), said
    return said if run.returncode else ""


def imports_of(copy: Path) -> str:
    return problems(copy, "lint-imports", "--no-logo", "--no-cache")


def style_of(copy: Path) -> str:
    return problems(copy, "ruff", "check", "--no-cache", "celery_batches")


def add(copy: Path, module: str, line: str) -> None:
    """Add a line to a module, below its imports."""
    path = copy / "celery_batches" / module
    path.write_text(path.read_text() + f"\n{line}\n")


def test_the_package_as_it_is(copy: Path) -> None:
    """The rules hold."""
    assert imports_of(copy) == ""
    assert style_of(copy) == ""


@pytest.mark.parametrize(
    ("module", "line", "rule"),
    [
        ("core/buffer.py", "import celery", "The core is pure"),
        ("core/buffer.py", "import time", "The core is pure"),
        ("core/buffer.py", "from .. import options", "Imports point one way"),
        ("pool/run.py", "from ..worker import limits", "Imports point one way"),
        ("transports/visibility.py", "from ..worker import limits", "Imports point one way"),
        ("backends/bulk.py", "from ..pool import log", "Imports point one way"),
        ("worker/limits.py", "from ..pool import log", "there is one edge"),
        ("worker/limits.py", "import amqp", "Only transports/ knows py-amqp"),
        ("client/many.py", "import amqp", "Only transports/ knows py-amqp"),
        ("client/many.py", "from ..pool import log", "The sending side knows nothing"),
        ("pool/run.py", "import redis", "Only backends/ knows redis-py"),
    ],
)
def test_an_import_from_the_wrong_room(copy: Path, module: str, line: str, rule: str) -> None:
    """import-linter names the rule that is broken."""
    add(copy, module, line)
    said = " ".join(imports_of(copy).split())
    assert rule in said
    assert "BROKEN" in said


@pytest.mark.parametrize(
    ("module", "line", "code"),
    [
        ("worker/limits.py", "def f(task: RateLimit) -> None: task._bucket", "SLF001"),
        ("worker/limits.py", "def f() -> None: import json", "PLC0415"),
        ("worker/limits.py", "import kombu.transport.redis", "TID251"),
        ("backends/bulk.py", "import kombu.transport.redis", "TID251"),
        ("pool/run.py", "from celery.backends.redis import RedisBackend", "TID251"),
        ("transports/visibility.py", "from celery.backends import redis", "TID251"),
    ],
)
def test_what_ruff_refuses(copy: Path, module: str, line: str, code: str) -> None:
    """No foreign underscore names, no import inside of a function, no part of another room."""
    add(copy, module, line)
    assert code in style_of(copy)
