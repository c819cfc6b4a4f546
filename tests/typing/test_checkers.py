"""What type checkers say of the public names, with and without the types of Celery."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import python_of

import celery_batches

HERE = Path(__file__).parent
#: Celery has no types of its own. Without `celery-types`, its decorator has none.
FILES = {"with": ["api.py", "decorated.py"], "without": ["api.py"]}


class Checkers:
    """The checkers, and a directory with the package and the files that they check."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bin = Path(python_of("typed")).parent
        shutil.copytree(Path(celery_batches.__file__).parent, home / "package" / "celery_batches")
        for name in ("mypy.ini", "pyrightconfig.json", "api.py", "decorated.py"):
            shutil.copy(HERE / name, home)

    def add(self, name: str, line: str) -> None:
        """Add a line to a file."""
        path = self.home / name
        path.write_text(f"{path.read_text()}{line}\n")

    def run(self, checker: str, types: str) -> str:
        """Return what a checker complains of, or nothing."""
        python = str(self.bin / "python") if types == "with" else sys.executable
        args = {
            "mypy": ["--config-file", "mypy.ini", "--python-executable", python, *FILES[types]],
            "basedpyright": ["--project", self._project(FILES[types]), "--pythonpath", python],
        }
        done = subprocess.run(
            [str(self.bin / checker), *args[checker]],
            cwd=self.home,
            env={**os.environ, "MYPYPATH": "package"},
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        assert done.returncode in (0, 1), said
        return said if done.returncode else ""

    def _project(self, files: list[str]) -> str:
        """Write the settings of pyright for these files."""
        settings = json.loads((self.home / "pyrightconfig.json").read_text())
        path = self.home / "project.json"
        path.write_text(json.dumps({**settings, "include": files}))
        return path.name


@pytest.fixture
def checkers(tmp_path: Path) -> Checkers:
    return Checkers(tmp_path)


every_checker = pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
with_and_without = pytest.mark.parametrize("types", ["with", "without"])


@every_checker
@with_and_without
def test_the_public_names_are_typed(checkers: Checkers, checker: str, types: str) -> None:
    """Each has the type that its user expects, and what is wrong is an error where we say so."""
    assert checkers.run(checker, types) == ""


@every_checker
@with_and_without
def test_a_misspelt_name_is_an_error(checkers: Checkers, checker: str, types: str) -> None:
    """The checker names the attribute of the request. So it does for a comment without an error."""
    checkers.add("api.py", "six.retires")
    checkers.add("api.py", "six.retries  # type: ignore[attr-defined]  # pyright: ignore")
    said = checkers.run(checker, types).lower()
    assert "retires" in said
    assert "unused" in said or "unnecessary" in said
