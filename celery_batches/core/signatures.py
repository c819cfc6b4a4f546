"""Looks at the parameters of a function. Pure. Used wherever a task is."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

__all__ = ("required", "takes")

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


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


def _parameters(function: Callable[..., Any]) -> list[Parameter] | None:
    try:
        return list(signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
