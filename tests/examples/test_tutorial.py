"""The tutorial's commands, as its page has them, in a fresh environment.

The commands and what they print are read from the page itself. pip installs the package from a copy
of this tree, so it builds the wheel, and gets everything else from its index.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import brokers
import pytest
from harness import DEADLINE, Worker

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.rst"
#: What pip needs to build the wheel, and the examples.
CHECKOUT = ("LICENSE", "README.rst", "celery_batches", "docs/examples", "pyproject.toml")
#: What pip says when it gets no answer from its index, or is not to ask one.
NO_INDEX = re.compile(r"Retrying \(Retry|from versions: none")

pytestmark = [pytest.mark.redis, pytest.mark.timeout(400)]


class Session(NamedTuple):
    """Commands of the page that belong together, and the lines that it shows after them."""

    commands: list[str]
    shown: list[str]


def read_page() -> list[Session]:
    """The blocks of commands in order, each with the text block that follows it, if any."""
    pattern = r"^\.\. code-block:: (sh|text)\n\n((?:    .*\n|\n)+)"
    sessions: list[Session] = []
    for language, block in re.findall(pattern, PAGE.read_text(), re.MULTILINE):
        lines = [line.removeprefix("    ") for line in block.splitlines() if line]
        if language == "sh":
            sessions.append(Session(lines, []))
        else:
            sessions[-1].shown.extend(lines)
    return sessions


INSTALL, *SESSIONS = read_page()


def as_pattern(line: str) -> str:
    """A shown line as a regular expression: ids and times are different in each run."""
    varying = r"\\\[\w+…\\\]", r"\d+\\\.\d+s"
    return re.sub("|".join(varying), lambda found: r"\S+", re.escape(line))


@dataclass(frozen=True)
class Environment:
    """A place where the tutorial's first commands have been run: for the commands that follow."""

    directory: Path
    variables: dict[str, str]

    def run(self, command: list[str]) -> str:
        """What the program prints."""
        ended = subprocess.run(
            command,
            cwd=self.directory,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


def skip(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI has to run every test")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis of our own: the examples use the default queue, as others may."""
    try:
        server = brokers.start_redis(tmp_path_factory.mktemp("redis"))
    except brokers.Missing as missing:
        skip(str(missing))
    yield server.url
    server.kill()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, redis: str) -> Environment:
    """A copy of the checkout and a new virtual environment, after the page's first commands."""
    home = tmp_path_factory.mktemp("tutorial")
    make_venv = [sys.executable, str(ROOT / "scripts" / "venv.py"), str(home / "venv")]
    subprocess.run(make_venv, check=True)
    for name in CHECKOUT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, home / name)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {
        "PATH": os.pathsep.join([str(home / "venv" / "bin"), os.environ["PATH"]]),
        "VIRTUAL_ENV": str(home / "venv"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
        "CELERY_BROKER_URL": redis,
        "CELERY_RESULT_BACKEND": redis,
    }
    script = "\n".join(["set -e", *INSTALL.commands, "pwd"])
    ended = subprocess.run(
        ["sh", "-c", script], cwd=home, env=variables, capture_output=True, text=True, timeout=300
    )
    if ended.returncode and NO_INDEX.search(ended.stderr):
        skip(f"pip cannot reach its index: {ended.stderr.splitlines()[-1]}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Environment(Path(ended.stdout.splitlines()[-1]), variables)


def test_the_commands_install_this_package(environment: Environment) -> None:
    """The tutorial installs the package of this tree, and not one of that name elsewhere."""
    code = "import celery_batches as package; print(package.__file__, package.__version__)"
    path, version = environment.run(["python", "-c", code]).split()
    assert Path(environment.variables["VIRTUAL_ENV"]) in Path(path).parents
    assert f'version = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    for module in (ROOT / "celery_batches").rglob("*.py"):
        installed = Path(path).parent / module.relative_to(ROOT / "celery_batches")
        assert installed.read_text() == module.read_text()


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.commands[-1])
def test_the_commands_print_what_the_page_shows(environment: Environment, session: Session) -> None:
    """A worker and a program, started as the tutorial says, print each line that it shows."""
    worker_command, program = map(shlex.split, session.commands)
    worker = Worker(worker_command, environment.directory, environment.variables, "tutorial")
    try:
        worker.wait_for_log(r" ready\.$")
        printed = environment.run(program)
        assert session.shown
        for line in session.shown:
            if not re.search(rf"^{as_pattern(line)}$", printed, re.MULTILINE):
                worker.wait_for_log(rf"{as_pattern(line)}$")
        assert worker.stop() == 0
    finally:
        worker.kill()
        print(worker.text)  # Shown if the test has failed.


def test_every_example_that_is_a_program_is_run() -> None:
    """The tutorial has commands for each example, but for some.

    Those need a service of the reader's, are no programs, or are on pages of their own, which have
    tests of their own.
    """
    run = {session.commands[-1].removeprefix("python ") for session in SESSIONS}
    examples = {path.name for path in (ROOT / "docs" / "examples").glob("*.py")}
    pages = {page for page in (ROOT / "docs").glob("*.rst") if page.name != "tutorial.rst"}
    elsewhere = {
        name for page in pages for name in re.findall(r"examples/(\w+\.py)", page.read_text())
    }
    others = {"bulk_api.py", "eager.py"} | elsewhere
    assert examples - run == others - run
