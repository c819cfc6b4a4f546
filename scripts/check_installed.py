"""Fail unless the `celery_batches` that tests import is the installed wheel, whole and typed."""

import sys
from importlib.metadata import version
from pathlib import Path

import celery_batches


def main() -> None:
    package = Path(celery_batches.__file__).resolve().parent
    if Path(sys.prefix).resolve() not in package.parents:
        sys.exit(f"celery_batches is imported from {package}, not from the wheel in {sys.prefix}")
    if not (package / "py.typed").is_file():
        sys.exit(f"{package} has no py.typed")
    if celery_batches.__version__ != version("celery-batches"):
        sys.exit(f"__version__ is {celery_batches.__version__}, not {version('celery-batches')}")
    print(f"celery-batches {celery_batches.__version__} with celery {version('celery')}: {package}")


if __name__ == "__main__":
    main()
