"""Programs that the tests run beside a worker, each in an environment of its own.

    peers.py            make sure of all of them, and print their Pythons
    peers.py NAME ...   of these

`flower` is the monitor that users watch their tasks with, and `tools` are libraries that record
from inside the worker what tasks do. `typed` has two type checkers, and the types of Celery that
the other environments do not have. `original` is celery-batches 0.11, which this package is
compared with, and `bench-...` are what the benchmarks measure beside it: the original, Celery
and kombu, all on one Celery. They live apart from what the tests need: all that they share is the
broker. An environment that has what is listed here is left as it is. Where one cannot be installed
this says so, and its tests are skipped; with CI=true that is an error.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
CELERY = ["celery>=5.7,<5.8", "kombu[redis]>=5.7,<5.8", "gevent"]
TOOLS = [
    "celery>=5.7,<5.8",
    "kombu[redis]",
    "sentry-sdk>=2",
    "newrelic>=10",
    "opentelemetry-instrumentation-celery",
    "opentelemetry-sdk>=1.20",
    "ddtrace>=3",
    "elastic-apm>=6",
    "rollbar>=1",
    "django>=5",
    "django-structlog>=9",
]
REQUIREMENTS = {
    "flower": ["flower>=2", "kombu[redis]"],
    "original": ["celery-batches==0.11", "kombu[redis]"],
    "tools": TOOLS,
    # basedpyright is pyright with the program that runs it: pyright itself downloads that.
    "typed": ["celery>=5.7,<5.8", "celery-types>=0.26", "mypy>=1.14", "basedpyright>=1.29"],
    "bench-original": CELERY,
    "bench-celery": CELERY,
    "bench-kombu": ["kombu[redis]>=5.7,<5.8"],
}
#: Installed without their dependencies: celery-batches 0.11 asks for a Celery before 5.7, but runs
#: on it, and only what runs on the same Celery can be compared.
BARE = {"bench-original": ["celery-batches==0.11"]}
IN_CI = os.environ.get("CI") == "true"


def home(name: str) -> Path:
    return SCRIPTS.parent / f".venv-{name}"


def find(name: str) -> Path | None:
    """The Python that has this peer, if it was installed here."""
    python, stamp = home(name) / "bin" / "python", home(name) / "peer.stamp"
    wanted = _wanted(name)
    if python.exists() and stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return python
    return None


def install(name: str) -> Path:
    """The Python that has this peer, installed if it is missing.

    Raises `subprocess.CalledProcessError`.
    """
    if found := find(name):
        return found
    python = home(name) / "bin" / "python"
    venv = [sys.executable, str(SCRIPTS / "venv.py"), str(home(name))]
    subprocess.run(venv, check=True, stdout=sys.stderr)
    pip = [str(python), "-m", "pip", "-qq", "--disable-pip-version-check", "install", "--upgrade"]
    subprocess.run([*pip, *REQUIREMENTS[name]], check=True)
    if name in BARE:
        subprocess.run([*pip, "--no-deps", *BARE[name]], check=True)
    (home(name) / "peer.stamp").write_text(json.dumps(_wanted(name)))
    return python


def _wanted(name: str) -> list[str]:
    return [*REQUIREMENTS[name], *BARE.get(name, [])]


def main(names: list[str]) -> int:
    missing = []
    for name in names or REQUIREMENTS:
        try:
            print(f"{name}: {install(name)}")
        except subprocess.CalledProcessError as error:
            missing.append(name)
            print(f"*** {name} cannot be installed in {home(name)}: {error}", file=sys.stderr)
            if not IN_CI:
                print(f"*** Tests that need {name} will be SKIPPED.", file=sys.stderr)
    return 1 if missing and IN_CI else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
