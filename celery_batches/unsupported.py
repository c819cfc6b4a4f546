"""Methods of Celery's ``Task`` that a batch refuses, with alternatives. Runs anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from celery import Task

if TYPE_CHECKING:
    from celery import Signature

__all__ = ("UnsupportedMethods",)


class UnsupportedMethods(Task):  # type: ignore[misc]  # celery is not typed
    """The methods of a task that a batch task refuses."""

    abstract = True

    def replace(self, sig: Signature) -> NoReturn:
        """Not supported: one signature cannot stand for all the calls of a batch.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{self.name}: a batch cannot be replaced by {sig!r}. Send each call with a link or in "
            f"a chain, and call request.mark_as_done(result) to start the next task"
        )

    def add_to_chord(self, sig: Signature, lazy: bool = False) -> NoReturn:
        """Not supported: the requests of a batch may be in different chords, or in none.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{self.name}: {sig!r} cannot be added to the chord of a batch, whose requests may be "
            f"in different chords or in none"
        )

    def map(self, it: Iterable[Any]) -> NoReturn:
        """Not supported: it would call the body with plain arguments, in one task.

        Raises:
            NotImplementedError: Always. The message names an alternative.
        """
        raise self._no_loop("map")

    def starmap(self, it: Iterable[Any]) -> NoReturn:
        """Not supported, as `map`.

        Raises:
            NotImplementedError: Always. The message names an alternative.
        """
        raise self._no_loop("starmap")

    def chunks(self, it: Iterable[Any], n: int) -> NoReturn:
        """Not supported, as `map`.

        Raises:
            NotImplementedError: Always. The message names an alternative.
        """
        raise self._no_loop("chunks")

    def _no_loop(self, name: str) -> NotImplementedError:
        return NotImplementedError(
            f"{self.name}: {name}() runs a task in a loop, one item at a time, but a batch task "
            f"takes many at once. Use group({self.name}.s(item) for item in items)()"
        )
