"""The public name of ``apply_batches_task``, which runs a batch in this process."""

from __future__ import annotations

from .pool.trace import apply_batches_task

__all__ = ("apply_batches_task",)
