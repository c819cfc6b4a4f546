"""The public name of what runs a batch in this process. Runs in the pool."""

from __future__ import annotations

from .pool.trace import apply_batches_task

__all__ = ("apply_batches_task",)
