"""Has a long run left something behind? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from summary import slope
from tables import simple_table

__all__ = ("Checkpoint", "Phase", "checkpoints_table", "phases_table", "problems")

#: Of the messages of a phase, those before memory has to be flat.
WARM_UP = 0.2
#: How many times the memory of its first time the same may need again.
AGAIN = 1.05


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the worker's main process has.

    Attributes:
        title: When.
        idle: Whether it had nothing to do then.
        resident: Memory that it has resident, in bytes.
        unique: Memory that it shares with nobody, in bytes.
        state: How many there are of what could grow.
    """

    title: str
    idle: bool
    resident: int
    unique: int
    state: Mapping[str, int]


@dataclass(slots=True)
class Phase:
    """Many messages of one kind.

    Attributes:
        title: Which kind.
        messages: How many.
        seconds: How long they took.
        samples: The number of messages that were done, and the memory resident then.
        piles_up: Whether all of them are in the worker at once.
    """

    title: str
    messages: int
    piles_up: bool = False
    seconds: float = 0.0
    samples: list[tuple[float, float]] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Bytes that memory grows with each message, once it is warm; 0 if that is what it does."""
        if self.piles_up:
            return 0.0
        warm = [(done, size) for done, size in self.samples if done >= WARM_UP * self.messages]
        return slope(warm) if len({done for done, _ in warm}) > 1 else 0.0

    @property
    def peak(self) -> float:
        return max((size for _, size in self.samples), default=0.0)


def problems(
    phases: Sequence[Phase], checkpoints: Sequence[Checkpoint], *, bound: float | None
) -> list[str]:
    """What is not as it has to be.

    Arguments:
        phases: What was done. Of those that pile up, a later one must not need more than the first.
        checkpoints: What was left after each; the first one is that of the warm worker.
        bound: The most bytes that memory may grow with each message, if that is looked at.
    """
    found = []
    warm = checkpoints[0].state
    for checkpoint in (one for one in checkpoints[1:] if one.idle):
        for name, count in checkpoint.state.items():
            if count > warm[name]:
                found.append(f"{checkpoint.title}: {name} went from {warm[name]} to {count}")
    if bound is None:
        return found
    for phase in phases:
        if phase.growth > bound:
            found.append(f"{phase.title}: {phase.growth:.2f} bytes for each message, not {bound:g}")
    piles = [phase for phase in phases if phase.piles_up]
    for phase in piles[1:]:
        if phase.peak > AGAIN * piles[0].peak:
            peaks = f"{phase.peak / 1e6:.1f} MB, and before {piles[0].peak / 1e6:.1f} MB"
            found.append(f"{phase.title}: the same again needs {peaks}")
    return found


def phases_table(phases: Sequence[Phase]) -> str:
    rows = [
        [
            phase.title,
            f"{phase.messages:,}",
            f"{phase.messages / phase.seconds:,.0f}",
            f"{phase.peak / 1e6:.1f}",
            "-" if phase.piles_up else f"{phase.growth:+.2f}",
        ]
        for phase in phases
    ]
    return simple_table(["phase", "messages", "messages/s", "peak, MB", "bytes/message"], rows)


def checkpoints_table(checkpoints: Sequence[Checkpoint]) -> str:
    names = list(checkpoints[0].state)
    rows = [
        [
            one.title,
            f"{one.resident / 1e6:.1f}",
            f"{one.unique / 1e6:.1f}",
            *(str(one.state[name]) for name in names),
        ]
        for one in checkpoints
    ]
    return simple_table(["worker", "RSS, MB", "USS, MB", *names], rows)
