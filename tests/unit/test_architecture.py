"""The architecture page: it speaks of the package as it is."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import celery_batches

PACKAGE = Path(celery_batches.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "architecture.rst").read_text()

MODULES = {
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def rows() -> list[list[str]]:
    with (DOCS / "modules.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def test_each_module_is_in_the_table_once() -> None:
    """Every module of the package has a line, and no line is for a module that is gone."""
    assert sorted(name for name, *_ in rows()) == sorted(MODULES)


def test_each_line_says_where_the_module_runs_and_what_it_does() -> None:
    """One of the processes that the page explains, and a phrase."""
    for name, process, purpose in rows():
        assert process in ("main", "pool", "caller", "any"), name
        assert len(purpose) > 10, name


def test_each_room_is_on_the_page() -> None:
    """The table of rooms has every room, and the pictures show it."""
    for room in ROOMS:
        assert f"   * - ``{room}/``\n" in PAGE
        assert len(re.findall(rf"\b{room}/", PAGE)) >= 3


def test_the_page_names_modules_that_are_there() -> None:
    """Wherever the page names a module by its path, there is one."""
    rooms = "|".join(sorted(ROOMS))
    named = set(re.findall(rf"``((?:{rooms})/\w+\.py)``", PAGE))
    assert named
    assert named <= MODULES


def test_pictures_fit_a_page() -> None:
    """No line of a literal block is so wide that a reader has to scroll."""
    for block in PAGE.split(".. code-block:: text\n")[1:]:
        picture, *_ = re.split(r"\n(?=\S)", block)
        assert max(map(len, picture.splitlines())) < 96, picture


def test_a_client_does_not_import_what_runs_in_the_worker() -> None:
    """To import the package imports nothing of `worker/`, `transports/` and `backends/`."""
    code = "import sys, celery_batches; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert "celery_batches.task" in loaded
    rooms = tuple(f"celery_batches.{room}" for room in ("worker", "transports", "backends"))
    assert [name for name in loaded if name.startswith(rooms)] == []
