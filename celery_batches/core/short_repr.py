"""Shortens the representation of a value for the log. Pure. Used in both processes."""

from __future__ import annotations

import reprlib

__all__ = ("short_repr",)


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # More digits than Python converts to a string.
            return f"<int of {x.bit_length()} bits>"


_short = _ShortRepr()


def short_repr(value: object) -> str:
    """Return the representation of a value, without its long parts."""
    return _short.repr(value)
