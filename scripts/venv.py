"""Make a virtual environment with pip: `python3 scripts/venv.py .venv`.

Debian's python3 comes without `ensurepip`. As root its package python3-venv is installed; without
root, pip is taken from Debian's python3-pip-whl. Any Python from 3.10 runs it.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import debian


def works(venv: Path) -> bool:
    """Whether `venv` has a Python that runs pip."""
    python = venv / "bin" / "python"
    command = [str(python), "-m", "pip", "--version"]
    return python.exists() and subprocess.run(command, capture_output=True).returncode == 0


def create(venv: Path, *options: str) -> bool:
    shutil.rmtree(venv, ignore_errors=True)
    command = [sys.executable, "-m", "venv", *options, str(venv)]
    return subprocess.run(command, capture_output=True).returncode == 0


def create_with_debians_pip(venv: Path) -> None:
    """Without `ensurepip` and without root: a bare environment, and pip from its Debian package."""
    if not create(venv, "--without-pip"):
        sys.exit(f"{sys.executable} has no venv module")
    with TemporaryDirectory() as unpacked:
        debian.unpack(Path(unpacked), "python3-pip-whl", dependencies=False)
        wheel = next(Path(unpacked).glob("usr/share/python-wheels/pip-*.whl"))
        pip = [str(venv / "bin" / "python"), str(wheel / "pip")]
        subprocess.run([*pip, "install", "--quiet", "--no-index", str(wheel)], check=True)


def ensure(venv: Path) -> None:
    if works(venv) or (create(venv) and works(venv)):
        return
    if debian.is_root():
        debian.install("python3-venv")
        if create(venv) and works(venv):
            return
    create_with_debians_pip(venv)


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 - any python3 may be the one that starts this.
        sys.exit(f"Python 3.10 or newer is needed, and {sys.executable} is {sys.version}")
    venv = Path(sys.argv[1])
    try:
        ensure(venv)
    except debian.Unavailable as error:
        sys.exit(f"cannot make {venv} with {sys.executable}: {error}")
    print(f"{venv}: {subprocess.getoutput(f'{venv}/bin/python --version')}")


if __name__ == "__main__":
    main()
