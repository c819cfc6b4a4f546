"""The forms of a call in `apply_async_many` and `delay_many`. Runs in the process that sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from celery.canvas import Signature
from kombu.utils.uuid import uuid

__all__ = ("Call", "Reader", "check_options", "read_args", "read_call")

#: Options of a call that `apply_async_many` takes from the call itself.
OWN = ("args", "kwargs", "task_id")

#: Reads one item of the iterable; the first argument is the name of the task.
Reader: TypeAlias = "Callable[[str, Any], Call]"


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        args: Its positional arguments, as ``apply_async`` takes them.
        kwargs: Its keyword arguments.
        task_id: Its id.
        is_named: Whether the caller has chosen the id.
        options: Calling options of this call alone.
    """

    args: Any
    kwargs: Any
    task_id: str = field(default_factory=uuid)
    is_named: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as `read_call` reads it."""
        return {**self.options, "args": self.args, "kwargs": self.kwargs, "task_id": self.task_id}


def check_options(task_name: str, chunk: object, options: Mapping[str, Any]) -> int:
    """Check what all calls have in common, and return the size of a chunk.

    Raises:
        TypeError: If an option is one that each call has for itself.
        ValueError: If ``chunk`` is not an int of at least 1.
    """
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(
            f"Task {task_name!r}: chunk is {chunk!r}, but it must be an int of at least 1: the "
            f"most calls that are sent together. Set for example chunk=1000."
        )
    for name in OWN:
        if name in options:
            raise TypeError(
                f"Task {task_name!r}: {name} is not an option of all calls. Each call has its own: "
                f"apply_async_many([{{'args': (1,), 'task_id': 'a'}}, ...])."
            )
    return chunk


def read_args(task_name: str, item: object) -> Call:
    """Read an item of `delay_many`: a tuple or list of arguments, or a dict of keyword arguments.

    Raises:
        TypeError: If it is anything else.
    """
    if isinstance(item, tuple | list):
        return Call(tuple(item), {})
    if isinstance(item, Mapping):
        return Call((), dict(item))
    raise TypeError(
        f"Task {task_name!r}: delay_many got {item!r:.100}, but the arguments of a call are a "
        f"tuple, a list, or a dict of keyword arguments. For one argument, write ({item!r:.20},)."
    )


def read_call(task_name: str, item: object) -> Call:
    """Read an item of `apply_async_many`.

    It is ``(args,)`` or ``(args, kwargs)``, a signature of the task, or a dict with arguments of
    ``apply_async``.

    Raises:
        TypeError: If it is anything else, or a signature of another task.
    """
    if isinstance(item, Signature):
        if item.task != task_name:
            raise TypeError(f"Task {task_name!r}: {item!r} is a signature of {item.task!r}.")
        return _with_options(item.args, item.kwargs, dict(item.options))
    if isinstance(item, Mapping):
        options = dict(item)
        return _with_options(options.pop("args", None), options.pop("kwargs", None), options)
    if isinstance(item, tuple | list) and _is_call(item):
        return Call(item[0], item[1] if len(item) == 2 else None)
    raise TypeError(
        f"Task {task_name!r}: apply_async_many got {item!r:.100}, but a call is (args,), "
        f"(args, kwargs), a signature, or a dict such as {{'args': (1,), 'countdown': 10}}. "
        f"delay_many takes the bare arguments of each call."
    )


def _is_call(item: tuple[Any, ...] | list[Any]) -> bool:
    if not 1 <= len(item) <= 2 or not isinstance(item[0], tuple | list | None):
        return False
    return len(item) == 1 or isinstance(item[1], Mapping | None)


def _with_options(args: Any, kwargs: Any, options: dict[str, Any]) -> Call:
    task_id = options.pop("task_id", None)
    if task_id is None:
        return Call(args, kwargs, options=options)
    return Call(args, kwargs, task_id, True, options)
