"""Where the supported versions of Celery differ. Runs anywhere."""

from __future__ import annotations

from inspect import signature
from typing import Any

from celery.result import EagerResult

__all__ = ("eager_result",)

#: Celery 5.4 and newer let the result of an eager call know the name of its task.
_NAMED_RESULTS = "name" in signature(EagerResult.__init__).parameters


def eager_result(
    task_id: str, value: Any, state: str, *, traceback: str | None, name: str
) -> EagerResult:
    """Return the result of a call that was run eagerly."""
    if _NAMED_RESULTS:
        return EagerResult(task_id, value, state, traceback=traceback, name=name)
    return EagerResult(task_id, value, state, traceback=traceback)
