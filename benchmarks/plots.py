"""Results as a picture. Needs matplotlib: `pip install --group bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import PEERS
from summary import Spread, figures_of

__all__ = ("plot",)

COLOURS = {
    "ours": "#37814a",
    "original": "#c9a227",
    "plain": "#7a7a7a",
    "kombu": "#b9cfe0",
    "mixin": "#7fa6c4",
}


def plot(runs: Sequence[Mapping[str, Any]], titles: Mapping[str, str], path: Path) -> bool:
    """Draw messages a second, for each case; return whether there was anything to draw.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    found = {
        pair: Spread.of([figures["rate"] for figures in repeats.values()])
        for pair, repeats in figures_of(runs).items()
        if all("rate" in figures for figures in repeats.values())
    }
    if not found:
        return False
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(case for case, _ in found))
    peers = [peer for peer in PEERS if any((case, peer) in found for case in cases)]
    figure = Figure(figsize=(9, 1.2 + 0.2 * len(cases) * (len(peers) + 1)), layout="constrained")
    axes = figure.add_subplot()
    height = 1 / (len(peers) + 1)
    for place, peer in enumerate(peers):
        drawn = [
            (row, found[case, peer]) for row, case in enumerate(cases) if (case, peer) in found
        ]
        axes.barh(
            [row + place * height for row, _ in drawn],
            [spread.median for _, spread in drawn],
            height=height,
            color=COLOURS[peer],
            label=titles[peer],
            xerr=[
                [spread.median - spread.low for _, spread in drawn],
                [spread.high - spread.median for _, spread in drawn],
            ],
            error_kw={"elinewidth": 0.8, "capsize": 2},
        )
    middle = height * (len(peers) - 1) / 2
    axes.set_yticks([row + middle for row in range(len(cases))], cases)
    axes.invert_yaxis()
    axes.set_xlabel("messages a second: median, and the slowest and the fastest run")
    figure.legend(loc="outside upper center", ncols=len(peers))
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)
    return True
