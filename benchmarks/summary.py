"""What many runs say together: medians, and ratios between peers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

__all__ = (
    "LESS_IS_MORE",
    "Spread",
    "figures_of",
    "percentile",
    "rate_after",
    "ratio",
    "sizes",
    "slope",
)

#: Figures of which the smaller is the better: a ratio is the peer's divided by ours then.
LESS_IS_MORE = frozenset(
    {"main_cpu", "child_cpu", "broker_cpu", "main_memory", "child_memory", "p50", "p99", "held"}
)


@dataclass(frozen=True, slots=True)
class Spread:
    """Several values of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises `ValueError` without values."""
        if not values:
            raise ValueError("no values")
        return cls(median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least so many percent do not exceed."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def rate_after(bodies: Iterable[tuple[float, int]], started: float, ended: float) -> float:
    """Messages a second between two moments.

    Arguments:
        bodies: When each call of the body ended, and its number of messages.
        started: The first moment: what was run before does not count.
        ended: The last moment.
    """
    count = sum(size for moment, size in bodies if moment > started)
    if count == 0 or ended <= started:
        raise ValueError("nothing was run in that time")
    return count / (ended - started)


def sizes(of_batches: Iterable[int]) -> dict[str, int]:
    """How many batches had which size; the keys are as JSON has them."""
    return {str(size): count for size, count in sorted(Counter(of_batches).items())}


def figures_of(runs: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, Any]]:
    """The figures of each case and peer, by repeat; runs that failed are left out."""
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for run in runs:
        if not run["failure"]:
            found.setdefault((run["case"], run["peer"]), {})[run["repeat"]] = run["figures"]
    return found


def ratio(
    ours: Mapping[int, Mapping[str, float]], theirs: Mapping[int, Mapping[str, float]], name: str
) -> Spread | None:
    """How many times better we are in one figure: each repeat is compared with its like.

    Runs of one repeat follow each other, so that a machine that is slow for a while slows both.
    """
    values = []
    for repeat in ours.keys() & theirs.keys():
        mine, other = ours[repeat].get(name), theirs[repeat].get(name)
        if mine and other:
            values.append(other / mine if name in LESS_IS_MORE else mine / other)
    return Spread.of(values) if values else None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How much y grows with each x, by least squares."""
    if len(points) < 2:
        raise ValueError("two points at least")
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    across = sum((x - mean_x) ** 2 for x, _ in points)
    if not across:
        raise ValueError("all points have the same x")
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / across
