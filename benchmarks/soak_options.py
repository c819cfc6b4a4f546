"""What a soak may be told on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ("parse",)


def parse(arguments: Sequence[str], description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", choices=("rabbitmq", "redis"), default="rabbitmq")
    parser.add_argument("--acks", choices=("early", "late"), default="late")
    parser.add_argument("--pool", choices=("prefork", "threads", "gevent"), default="prefork")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--flush-every", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=50_000, help="messages before all")
    parser.add_argument("--small", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--eta", type=int, default=50_000, help="in each of two backlogs")
    parser.add_argument("--eta-delay", type=float, help="seconds until the first of them is due")
    parser.add_argument("--depth", type=int, default=20_000, help="messages under way at most")
    parser.add_argument("--bound", type=float, default=4.0, help="bytes for each message")
    parser.add_argument("--quick", action="store_true", help="few messages; no --bound")
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.warm_up = options.small = 5_000
        options.large = options.eta = 1_000
        options.bound = None
    if options.eta_delay is None:
        # All of them are to be in the worker before the first is due.
        options.eta_delay = 10 + options.eta * (0.006 if options.broker == "redis" else 0.002)
    return options
