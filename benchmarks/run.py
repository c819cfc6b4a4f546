"""Measures this package beside its peers: `make bench`, or `make bench ARGS='--cases must'`.

    run.py --list                       the cases
    run.py --cases must redis-*         these; `must`, `axes`, `scaling` and `all` are sets of them
    run.py --quick                      few messages, once: to see that it works
    run.py --render results.json        tables and plot of what was measured before

Peers take turns: each repeat runs all of them, one after the other. Results go to build/bench:
results.json, tables.rst and plot.svg. How it is measured is said in measure.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tables
from cases import CASES, PEERS, Case, select
from environments import ENVIRONMENTS, find, mixed, versions
from measure import Run, measure
from plots import plot

OUTPUT = Path(__file__).resolve().parents[1] / "build" / "bench"
TITLES = {peer: environment.title for peer, environment in ENVIRONMENTS.items()}
QUICK = 2_000


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=["axes"], metavar="PATTERN")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--messages", type=int, help="in place of what each case says")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} messages, once")
    parser.add_argument("--limit", type=float, default=900, help="seconds that one run may take")
    parser.add_argument("--mixed", action="store_true", help="let versions differ between peers")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="a directory")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--render", type=Path, metavar="JSON")
    options = parser.parse_args(arguments)
    if options.quick:
        options.messages, options.repeats = options.messages or QUICK, 1
    return options


def selected(options: argparse.Namespace) -> list[Case]:
    chosen = []
    for case in select(options.cases):
        peers = tuple(peer for peer in case.peers if peer in options.peers)
        messages = options.messages or case.messages
        eta = min(case.eta, messages) if options.quick else case.eta
        chosen.append(replace(case, peers=peers, messages=messages, eta=eta))
    return chosen


def run_all(cases: Sequence[Case], *, repeats: int, limit: float) -> Iterator[Run]:
    """Every case, `repeats` times, the peers in turn."""
    for case in cases:
        for repeat in range(repeats):
            for peer in case.peers:
                run = measure(case, peer, repeat, limit=limit)
                found = ", ".join(f"{name} {value:.6g}" for name, value in run.figures.items())
                print(f"{case.name} #{repeat} {peer}: {found or run.failure}", file=sys.stderr)
                yield run


def environment(peers: Sequence[str]) -> dict[str, Any]:
    """Where this was measured."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "machine": platform.platform(),
        "processors": os.cpu_count(),
        "load": os.getloadavg(),
        "peers": {peer: versions(peer) for peer in peers},
    }


def render(results: dict[str, Any], output: Path) -> str:
    """Write the tables and the plot; return the tables."""
    runs = results["runs"]
    texts = {
        "Figures: median (least to most)": tables.main_table(runs, TITLES),
        "How many times better this package is: median (least to most)": tables.ratios_table(
            runs, TITLES
        ),
        "Batches": tables.sizes_table(runs, TITLES),
        "What it has to show": tables.targets_table(runs, TITLES),
        "Failed": tables.failures_table(runs, TITLES),
    }
    text = "\n".join(
        f"{title}\n{'-' * len(title)}\n\n{table}\n" for title, table in texts.items() if table
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "tables.rst").write_text(text)
    try:
        plot(runs, TITLES, output / "plot.svg")
    except ImportError:
        print("No plot: matplotlib is not installed (pip install --group bench).", file=sys.stderr)
    return text


def main(arguments: Sequence[str]) -> int:
    # So that what was started is ended, and its queue deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parse(arguments)
    if options.list:
        print(tables.cases_table(CASES))
        return 0
    if options.render:
        print(render(json.loads(options.render.read_text()), options.output))
        return 0
    try:
        cases = selected(options)
        peers = [peer for peer in PEERS if any(peer in case.peers for case in cases)]
        for peer in peers:
            find(peer)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    where = environment(peers)
    if (differences := mixed(where["peers"])) and not options.mixed:
        print(f"Not the same for all peers, see --mixed: {differences}", file=sys.stderr)
        return 2
    results: dict[str, Any] = {
        "environment": where,
        "cases": [asdict(case) for case in cases],
        "runs": [],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    for run in run_all(cases, repeats=options.repeats, limit=options.limit):
        results["runs"].append(run.as_dict())
        # Each time, so that a long run that is cut short is not lost.
        (options.output / "results.json").write_text(json.dumps(results, indent=1))
    print(render(results, options.output))
    return 1 if any(run["failure"] for run in results["runs"]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
