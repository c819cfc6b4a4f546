"""Looks at a function: its parameters and its module. Pure. Used wherever a task is."""

from __future__ import annotations

from collections.abc import Callable
from inspect import (
    Parameter,
    isasyncgenfunction,
    iscoroutinefunction,
    isgeneratorfunction,
    isroutine,
    signature,
)
from typing import Any

__all__ = ("is_async", "is_generator", "module_of", "required", "takes")

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def module_of(function: Callable[..., Any]) -> str:
    """Return the module whose code a function or method is, also if a wrapper names another."""
    code_globals = getattr(getattr(function, "__func__", function), "__globals__", {})
    return str(code_globals.get("__name__", ""))


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with that many positional arguments, as far as is known."""
    parameters = _parameters(function)
    if parameters is None or any(each.kind is Parameter.VAR_POSITIONAL for each in parameters):
        return True
    return sum(each.kind in POSITIONAL for each in parameters) >= count


def required(function: Callable[..., Any]) -> int:
    """Return how many positional arguments a function needs, as far as is known."""
    parameters = _parameters(function) or []
    return sum(each.kind in POSITIONAL and each.default is each.empty for each in parameters)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call makes a coroutine, as far as is known before the call."""
    return any(map(iscoroutinefunction, (function, _call_of(function))))


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether a call makes a generator or an asynchronous generator, as far as is known."""
    both = (function, _call_of(function))
    return any(map(isgeneratorfunction, both)) or any(map(isasyncgenfunction, both))


def _call_of(function: Callable[..., Any]) -> object:
    """Return the ``__call__`` of an object that is no function, or the function."""
    return function if isroutine(function) else getattr(type(function), "__call__", function)  # noqa: B004


def _parameters(function: Callable[..., Any]) -> list[Parameter] | None:
    try:
        return list(signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
