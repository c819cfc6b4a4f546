"""Every way in which the actors on a stage may change places, and the locks that they meet at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kit.stage import Actor, Stage


class SteppedLock:
    """A lock for actors: to wait for it is to let others go on."""

    again = False

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.holders: list[Actor | None] = []

    @property
    def is_held(self) -> bool:
        return bool(self.holders)

    def __enter__(self) -> None:
        actor = self.stage.current
        self.stage.wait_for(lambda: not self.holders or (self.again and actor in self.holders))
        self.holders.append(actor)
        if actor is not None:
            actor.locks += 1

    def __exit__(self, *_: object) -> None:
        actor = self.holders.pop()
        if actor is not None:
            actor.locks -= 1
            self.stage.fail_unless_sound()
        self.stage.point()


class SteppedRLock(SteppedLock):
    """One that its holder may take again."""

    again = True


def explore(play: Callable[[Sequence[int]], Stage], *, departures: int) -> int:
    """Play every schedule with up to that many departures; return how many there are.

    A departure is when another goes on than the one who could. Few of them make most races, and
    without such a limit there would be too many schedules.

    Arguments:
        play: Runs a stage with these decisions, and returns it.
        departures: The limit.
    """
    untried: list[tuple[int, ...]] = [()]
    played = 0
    while untried:
        decisions = untried.pop()
        try:
            stage = play(decisions)
        except BaseException as exc:
            raise AssertionError(f"with the decisions {decisions}: {exc!r}") from exc
        played += 1
        if sum(map(bool, decisions)) < departures:
            for step in range(len(decisions), len(stage.choices)):
                others = range(1, stage.choices[step])
                untried.extend((*decisions, *[0] * (step - len(decisions)), i) for i in others)
    return played
