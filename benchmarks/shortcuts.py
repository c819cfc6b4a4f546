"""What each shortcut gains, alone: `python benchmarks/shortcuts.py`, or with names of shortcuts.

Runs of this package with all shortcuts and without one take turns, in an order that changes. The
figures are those of the runs without it, divided by those of the runs with it, of the same turn:
above 1 the shortcut saves CPU time or memory, and below 1 it gains messages a second.

Needs TEST_RABBITMQ_URL and TEST_REDIS_URL, as from `scripts/services.py run`. The broker should
have nothing else to do: its CPU time is that of all its users.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from cases import Case, select
from measure import Run, measure
from summary import Spread
from tables import simple_table, spread_text

#: Each shortcut, and the cases in which it has something to do.
CASES: dict[str, tuple[str, ...]] = {
    "amqp_reader": ("rabbitmq-base",),
    "amqp_acks": ("rabbitmq-base",),
    "amqp_frames": ("rabbitmq-base", "rabbitmq-outstanding"),
    "amqp_nack": ("rabbitmq-base",),
    "amqp_prefetch": ("rabbitmq-base",),
    "redis_acks": ("redis-base",),
    "bulk_results": ("redis-results",),
    "hard_limit": ("redis-base",),
    "lean_promises": ("held", "rabbitmq-base"),
}
FIGURES = ("rate", "main_cpu", "child_cpu", "broker_cpu", "held")

#: The figures of one turn: by the shortcut that is switched off, or by "" with all of them.
Turn = Mapping[str, Mapping[str, float]]


def find_case(name: str, messages: int) -> Case:
    """A case of the benchmark; or the one in which one message with an ETA stays outstanding."""
    if name == "rabbitmq-outstanding":
        return replace(select(["rabbitmq-base"])[0], name=name, eta=1, messages=messages)
    return replace(select([name])[0], messages=messages)


def turns(case: Case, names: Sequence[str], pairs: int) -> Iterator[Turn]:
    """Measure with all shortcuts and without each of these, so many times."""
    for number in range(pairs):
        order = ["", *names]
        random.shuffle(order)
        runs = {name: _measure(replace(case, without=name), number) for name in order}
        yield {name: run.figures for name, run in runs.items() if run.figures}


def _measure(case: Case, number: int) -> Run:
    run = measure(case, "ours", number, limit=300)
    found = ", ".join(f"{name} {value:.6g}" for name, value in run.figures.items())
    what = f"{case.name} #{number} without {case.without or 'none'}"
    print(f"{what}: {found or run.failure}", file=sys.stderr)
    return run


def ratios(found: Sequence[Turn], name: str) -> dict[str, Spread]:
    """The figures without a shortcut, divided by those with it, of the turns that have both."""
    values: dict[str, list[float]] = defaultdict(list)
    for turn in found:
        if name in turn and "" in turn:
            for figure in FIGURES:
                if turn[""].get(figure):
                    values[figure].append(turn[name][figure] / turn[""][figure])
    return {figure: Spread.of(each) for figure, each in values.items()}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(CASES), metavar="NAME")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--messages", type=int, default=10_000)
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(CASES):
        parser.error(f"no shortcut is called {', '.join(sorted(unknown))}")
    rows = []
    for case in dict.fromkeys(case for name in options.names for case in CASES[name]):
        names = [name for name in options.names if case in CASES[name]]
        found = list(turns(find_case(case, options.messages), names, options.pairs))
        for name in names:
            spreads = ratios(found, name)
            cells = [spread_text(spreads.get(figure), 1, 2) for figure in FIGURES]
            rows.append([name, case, *cells])
    print(simple_table(["without", "case", *FIGURES], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
