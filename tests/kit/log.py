"""What the log says."""

from __future__ import annotations

import logging

import pytest


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """The lines of this package at that level."""
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno == level and r.name.startswith("celery_batches")
    ]


class Problems(logging.Handler):
    """What the log says that an operator has to look at; each line is formatted, as it would be."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.formatter = logging.Formatter("%(levelname)s %(name)s %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def take(self) -> list[str]:
        """Return what there is, and forget it."""
        lines, self.lines = self.lines, []
        return lines

    def __enter__(self) -> Problems:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
