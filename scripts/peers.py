"""Programs that the tests run beside a worker, each in an environment of its own.

    peers.py            make sure of all of them, and print their Pythons
    peers.py NAME ...   of these

`flower` is the monitor that users watch their tasks with, `original` is celery-batches 0.11, which
this package is compared with. They live apart from what the tests need: all that they share is the
broker. An environment that has what is listed here is left as it is. Where one cannot be installed
this says so, and its tests are skipped; with CI=true that is an error.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
REQUIREMENTS = {
    "flower": ["flower>=2", "kombu[redis]"],
    "original": ["celery-batches==0.11", "kombu[redis]"],
}
IN_CI = os.environ.get("CI") == "true"


def home(name: str) -> Path:
    return SCRIPTS.parent / f".venv-{name}"


def find(name: str) -> Path | None:
    """The Python that has this peer, if it was installed here."""
    python, stamp = home(name) / "bin" / "python", home(name) / "peer.stamp"
    wanted = REQUIREMENTS[name]
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
    pip = [str(python), "-m", "pip", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--upgrade", *REQUIREMENTS[name]], check=True)
    (home(name) / "peer.stamp").write_text(json.dumps(REQUIREMENTS[name]))
    return python


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
