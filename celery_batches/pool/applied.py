"""What has become of one request: its outcome, and the report for the main process. In the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from billiard.einfo import ExceptionInfo

from ..core.outcomes import Kind, Outcome

__all__ = ("Applied", "Report")

#: The pool's report on one request: whether it failed, and the representation of its result or the
#: ``ExceptionInfo`` of its failure. ``Request.on_success`` takes these two values first.
Report: TypeAlias = "tuple[bool, str | ExceptionInfo | None]"


@dataclass(frozen=True, slots=True)
class Applied:
    """An outcome that has been applied.

    Attributes:
        outcome: The final outcome. It is a failure if the recorded result cannot be stored, or if
            the retries are exhausted. For a retried request it holds the ``Retry``.
        report: The report for the worker's main process.
    """

    outcome: Outcome
    report: Report

    @property
    def kind(self) -> Kind:
        """The name of the outcome."""
        return self.outcome.kind
