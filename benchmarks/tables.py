"""Results as text: tables in reStructuredText, that can also be read as they are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cases import PEERS, TARGETS, Case
from summary import Spread, figures_of, ratio

__all__ = (
    "failures_table",
    "main_table",
    "ratios_table",
    "simple_table",
    "sizes_table",
    "targets_table",
)

#: Title, figure, what it is multiplied with, digits behind the point.
COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("messages/s", "rate", 1, 0),
    ("main CPU, µs", "main_cpu", 1e6, 1),
    ("child CPU, µs", "child_cpu", 1e6, 1),
    ("broker CPU, µs", "broker_cpu", 1e6, 1),
    ("main peak, MB", "main_memory", 1e-6, 1),
    ("children peak, MB", "child_memory", 1e-6, 1),
    ("wait p50, ms", "p50", 1e3, 1),
    ("wait p99, ms", "p99", 1e3, 1),
    ("held, bytes", "held", 1, 0),
)
NOTHING = "—"  # A hyphen would be a bullet in a table of reStructuredText.


def simple_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A simple table of reStructuredText."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([rule, text[0], rule, *text[1:], rule])


def spread_text(spread: Spread | None, factor: float, digits: int) -> str:
    """The median, and the least and the most where they differ."""
    if spread is None:
        return NOTHING
    middle, low, high = (
        f"{value * factor:,.{digits}f}" for value in (spread.median, spread.low, spread.high)
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def main_table(runs: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Each case and peer with its figures; columns that nobody has are left out."""
    found = figures_of(runs)
    columns = [
        column
        for column in COLUMNS
        if any(column[1] in figures for repeats in found.values() for figures in repeats.values())
    ]
    rows = []
    for case, peer in _order(runs):
        repeats = found.get((case, peer), {}).values()
        cells = []
        for _, name, factor, digits in columns:
            values = [figures[name] for figures in repeats if name in figures]
            cells.append(spread_text(Spread.of(values) if values else None, factor, digits))
        rows.append([case, titles[peer], *cells])
    return simple_table(["case", "peer", *(title for title, *_ in columns)], rows)


def ratios_table(runs: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """How many times better this package is than each peer, in what each case is about."""
    found = figures_of(runs)
    others = [peer for peer in PEERS if peer != "ours" and any(run["peer"] == peer for run in runs)]
    rows = []
    for case in dict.fromkeys(run["case"] for run in runs):
        ours = found.get((case, "ours"), {})
        for figure in ("rate", "main_cpu", "p50", "p99", "held"):
            cells = [
                spread_text(ratio(ours, found.get((case, peer), {}), figure), 1, 2)
                for peer in others
            ]
            if set(cells) != {NOTHING}:
                rows.append([case, figure, *cells])
    return simple_table(["case", "figure", *(f"/ {titles[peer]}" for peer in others)], rows)


def sizes_table(runs: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """The batches of each case and peer: how many, their mean, the three most frequent sizes."""
    rows = []
    for case, peer in _order(runs):
        counts: dict[int, int] = {}
        for run in runs:
            if (run["case"], run["peer"]) == (case, peer) and not run["failure"]:
                for size, count in run["sizes"].items():
                    counts[int(size)] = counts.get(int(size), 0) + count
        if counts and set(counts) != {1}:
            batches = sum(counts.values())
            mean = sum(size * count for size, count in counts.items()) / batches
            usual = sorted(counts.items(), key=lambda item: -item[1])[:3]
            shares = ", ".join(f"{size}: {100 * count / batches:.0f} %" for size, count in usual)
            rows.append([case, titles[peer], str(batches), f"{mean:.1f}", shares])
    header = ["case", "peer", "batches", "mean size", "most frequent sizes"]
    return simple_table(header, rows) if rows else ""


def targets_table(runs: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """What has to be reached, and whether it is."""
    found = figures_of(runs)
    rows = []
    for target in TARGETS:
        ours, theirs = (found.get((target.case, peer), {}) for peer in ("ours", target.peer))
        reached = ratio(ours, theirs, "held" if target.case == "held" else "rate")
        if reached is not None:
            verdict = "yes" if reached.median >= target.at_least else "NO"
            wanted, text = f"{target.at_least:.1f}", spread_text(reached, 1, 2)
            rows.append([target.case, titles[target.peer], wanted, text, verdict])
    header = ["case", "compared with", "at least", "is", "reached"]
    return simple_table(header, rows) if rows else ""


def failures_table(runs: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """The runs without figures, and why."""
    rows = [
        [run["case"], titles[run["peer"]], str(run["repeat"]), run["failure"].splitlines()[0]]
        for run in runs
        if run["failure"]
    ]
    return simple_table(["case", "peer", "repeat", "failure"], rows) if rows else ""


def cases_table(cases: Sequence[Case]) -> str:
    """What can be selected."""
    rows = []
    for case in cases:
        about = f"{case.kind}, {case.broker}, {'late' if case.acks_late else 'early'} acks"
        about += f", flush_every={case.flush_every}, {case.pool}, {case.size} bytes"
        rows.append([case.name, f"{case.messages:,}", " ".join(case.peers), about])
    return simple_table(["case", "messages", "peers", "about"], rows)


def _order(runs: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Each case with its peers, cases in the order in which they were run."""
    pairs = dict.fromkeys((run["case"], run["peer"]) for run in runs)
    cases = list(dict.fromkeys(case for case, _ in pairs))
    return sorted(pairs, key=lambda pair: (cases.index(pair[0]), PEERS.index(pair[1])))
