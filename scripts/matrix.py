"""Run the tests on every Python found here x the oldest and newest Celery, and print a table.

`matrix.py ends` takes the oldest Celery release that works on a Python and the newest series;
`matrix.py full` takes every cell of tox.ini. Run in an environment that has tox.
"""

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

TOX = [str(Path(sys.executable).with_name("tox"))]
RESULTS = Path(".tox/matrix.json")
HEADINGS = ["Python", "Celery", "Kombu", "passed", "failed", "skipped", "time", ""]
COLUMNS = "{:<8}{:<9}{:<9}{:>7}{:>8}{:>9}{:>9}  {}"


@dataclass(frozen=True)
class Cell:
    """One environment of tox.ini, such as py310-celery53."""

    env: str

    @property
    def python(self) -> str:
        digits = self.env.partition("-")[0].removeprefix("py")
        return f"{digits[0]}.{digits[1:]}"

    @property
    def celery(self) -> str:
        return self.env.partition("-")[2]

    @property
    def directory(self) -> Path:
        return Path(".tox") / self.env

    def installed(self, distribution: str) -> str:
        code = f"from importlib.metadata import version; print(version({distribution!r}))"
        python = self.directory / "bin" / "python"
        if not python.exists():
            return "?"
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
        return done.stdout.strip() or "?"

    def counts(self) -> dict[str, float]:
        """What pytest counted: tests, failures, errors, skipped, time. Empty if it did not run."""
        report = self.directory / "junit.xml"
        if not report.exists():
            return {}
        suite = ElementTree.parse(report).getroot().find("testsuite")
        names = ("tests", "failures", "errors", "skipped", "time")
        return {name: float(suite.get(name, 0)) for name in names} if suite is not None else {}


def cells() -> list[Cell]:
    listed = subprocess.run([*TOX, "list", "--no-desc", "-q"], capture_output=True, text=True)
    listed.check_returncode()
    return [Cell(env) for env in listed.stdout.split() if env.startswith("py")]


def ends(every: list[Cell]) -> list[Cell]:
    """The oldest Celery that there is for each Python, and the newest."""
    chosen: list[Cell] = []
    for python in dict.fromkeys(cell.python for cell in every):
        of_python = [cell for cell in every if cell.python == python]
        oldest_first = sorted(of_python, key=lambda cell: (cell.celery != "lowest", cell.celery))
        chosen += dict.fromkeys([oldest_first[0], oldest_first[-1]])
    return chosen


def interpreter(version: str) -> str | None:
    """A Python of this version on the PATH or among pyenv's, if there is one that runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")]
    for candidate in filter(None, found):
        code = "import sys; print('{}.{}'.format(*sys.version_info))"
        done = subprocess.run([str(candidate), "-c", code], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return str(candidate)
    return None


def run(chosen: list[Cell], pythons: list[str]) -> dict[str, bool]:
    """Run these cells; whether each succeeded."""
    for cell in chosen:
        (cell.directory / "junit.xml").unlink(missing_ok=True)
    RESULTS.unlink(missing_ok=True)
    envs = ",".join(cell.env for cell in chosen)
    subprocess.run([*TOX, "run", "-e", envs, "--result-json", str(RESULTS), "--discover", *pythons])
    done = json.loads(RESULTS.read_text())["testenvs"] if RESULTS.exists() else {}
    return {cell.env: succeeded(done.get(cell.env, {})) for cell in chosen}


def succeeded(result: dict[str, list[dict[str, int]]]) -> bool:
    commands = result.get("test", [])
    return bool(commands) and all(command["retcode"] == 0 for command in commands)


def row(cell: Cell, *, good: bool) -> str:
    counts = cell.counts()
    failed = int(counts.get("failures", 0) + counts.get("errors", 0))
    skipped = int(counts.get("skipped", 0))
    passed = int(counts.get("tests", 0)) - failed - skipped
    verdict = "ok" if good else "FAILED" if counts else "FAILED before the tests"
    versions = cell.installed("celery"), cell.installed("kombu")
    time = f"{counts.get('time', 0):.0f}s"
    return COLUMNS.format(cell.python, *versions, passed, failed, skipped, time, verdict)


def main(mode: str) -> int:
    if mode not in ("ends", "full"):
        print(__doc__)
        return 2
    every = cells()
    wanted = every if mode == "full" else ends(every)
    pythons = {version: interpreter(version) for version in sorted({c.python for c in wanted})}
    chosen = [cell for cell in wanted if pythons[cell.python]]
    if not chosen:
        sys.exit("none of the Pythons in tox.ini is here")
    good = run(chosen, [python for python in pythons.values() if python])
    print("\n" + COLUMNS.format(*HEADINGS))
    for cell in chosen:
        print(row(cell, good=good[cell.env]))
    for version, found in pythons.items():
        if not found:
            print(f"{version:<8}not run: there is no python{version} here")
    return 0 if all(good.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "ends"))
