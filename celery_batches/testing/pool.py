"""Stands in for the worker's pool: runs each batch at once, in the process of the test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import error_info
from .batch import make_run
from .results import BatchResult, result_of

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("InlinePool",)


class InlinePool:
    """Runs batches like the solo pool, but sends and stores nothing.

    Arguments:
        task: The batch task.
        on_result: Called with what became of each batch that has run.
    """

    num_processes = 1
    is_green = False

    def __init__(self, task: Batches, on_result: Callable[[BatchResult], None]) -> None:
        self._task = task
        self._on_result = on_result
        #: The time limits of the worker's settings.
        self.options: dict[str, Any] = {}
        #: What handlers of the task have raised.
        self.errors: list[Exception] = []

    def apply_async(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        **options: Any,
    ) -> None:
        """Run a batch, and tell the worker so.

        Arguments:
            target: The function that a pool would run.
            args: Its arguments: the name of the task, those of `make_run`, and the record of the
                batch, which is not used, since no process can be lost here.
            **options: The functions to call when the batch starts and ends. No time limit is kept.
        """
        run = make_run(self._task, *args[1:-1])
        options["accept_callback"](os.getpid(), time.monotonic())
        try:
            run.run()
        except Exception as exc:
            self.errors.append(exc)
            options["error_callback"](error_info(exc))
        else:
            options["callback"]((run.has_failed_outside, run.reports, run.runtime))
            self._on_result(result_of(run))
