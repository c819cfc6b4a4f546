"""Methods of Celery's ``Task`` that a batch refuses, with what to do instead. Runs anywhere."""

from __future__ import annotations

from typing import Any, NoReturn

from celery import Task

__all__ = ("UnsupportedMethods",)


class UnsupportedMethods(Task):  # type: ignore[misc]  # celery is not typed
    """The methods of a task that a batch task refuses."""

    abstract = True

    def replace(self, sig: Any) -> NoReturn:
        """Not supported: one signature cannot stand for all the calls of a batch.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{self.name}: a batch cannot be replaced by {sig!r}; send what is to follow each call "
            f"as its link or the next task of a chain, and use request.mark_as_done(result)"
        )

    def add_to_chord(self, sig: Any, lazy: bool = False) -> NoReturn:
        """Not supported: the requests of a batch may be in different chords, or in none.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{self.name}: {sig!r} cannot be added to the chord of a batch, whose requests may be "
            f"in different chords or in none"
        )

    def map(self, it: Any) -> NoReturn:
        """Not supported: it would run the body on bare arguments, in one task.

        Raises:
            NotImplementedError: Always. It says what to do instead.
        """
        raise self._no_loop("map")

    def starmap(self, it: Any) -> NoReturn:
        """Not supported, as `map`.

        Raises:
            NotImplementedError: Always. It says what to do instead.
        """
        raise self._no_loop("starmap")

    def chunks(self, it: Any, n: int) -> NoReturn:
        """Not supported, as `map`.

        Raises:
            NotImplementedError: Always. It says what to do instead.
        """
        raise self._no_loop("chunks")

    def _no_loop(self, name: str) -> NotImplementedError:
        return NotImplementedError(
            f"{self.name}: {name}() runs a task in a loop, one item at a time, and a batch task "
            f"takes many at once; use group({self.name}.s(item) for item in items)()"
        )
