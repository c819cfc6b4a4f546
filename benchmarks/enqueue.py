"""How fast calls are sent: `python benchmarks/enqueue.py`, on RabbitMQ and Redis.

Ways to send the same calls take turns, each to the same queue, which is emptied after each:

delay           a loop of `delay`
delay_many      all calls with one `delay_many`
apply_async     a loop of `apply_async`, each call with options of its own
own options     the same calls with one `apply_async_many`: Celery makes each message
no templates    `delay_many` without the shortcut `message_templates`
no bulk         `delay_many` without `redis_publish` and `amqp_publish`

The ratios are of the same turn: to `delay`, and for `own options` to `apply_async`. Needs
TEST_RABBITMQ_URL and TEST_REDIS_URL, as from `scripts/services.py run`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter, process_time
from typing import Any

from celery import Celery
from kombu.utils.uuid import uuid
from summary import Spread
from tables import simple_table, spread_text

from celery_batches import Batches
from celery_batches.core.shortcuts import SHORTCUTS

BROKERS = {"rabbitmq": "TEST_RABBITMQ_URL", "redis": "TEST_REDIS_URL"}
PADDING = "x" * 100
#: What a way is compared with.
BASES = {"own options": "apply_async"}
BULK = {"redis_publish", "amqp_publish"}

#: Of one turn: the seconds and the CPU seconds of each way.
Turn = Mapping[str, tuple[float, float]]


def body(requests: list[Any]) -> None: ...


class Sending:
    """An app with a queue of its own."""

    def __init__(self, url: str, count: int) -> None:
        self.app = Celery("enqueue", broker=url)
        self.app.conf.task_default_queue = self.queue = f"bench-{uuid()}"
        self.count = count
        options = {"name": "bench.task", "base": Batches, "ignore_result": True}
        self.task: Any = self.app.task(**options)(body)
        self._connection = self.app.connection_for_write()
        self.ways: dict[str, Callable[[], Any]] = {
            "delay": self._delay,
            "delay_many": partial(self._delay_many, SHORTCUTS),
            "apply_async": self._apply_async,
            "own options": self._own_options,
            "no templates": partial(self._delay_many, SHORTCUTS - {"message_templates"}),
            "no bulk": partial(self._delay_many, SHORTCUTS - BULK),
        }

    def turn(self, names: Sequence[str]) -> Turn:
        """Send all calls in each of these ways."""
        found = {}
        for name in names:
            started, cpu = perf_counter(), process_time()
            self.ways[name]()
            found[name] = perf_counter() - started, process_time() - cpu
            self._connection.default_channel.queue_purge(self.queue)
        return found

    def close(self) -> None:
        self._connection.default_channel.queue_delete(self.queue)
        self._connection.release()

    def _delay(self) -> None:
        for number in range(self.count):
            self.task.delay(number, PADDING)

    def _delay_many(self, shortcuts: frozenset[str]) -> None:
        self.app.conf.batches_shortcuts = shortcuts
        self.task.delay_many((number, PADDING) for number in range(self.count))

    def _apply_async(self) -> None:
        for number in range(self.count):
            self.task.apply_async((number, PADDING), countdown=number)

    def _own_options(self) -> None:
        self.app.conf.batches_shortcuts = True
        self.task.apply_async_many(
            {"args": (number, PADDING), "countdown": number} for number in range(self.count)
        )


def rows(broker: str, turns: Sequence[Turn], count: int) -> list[list[str]]:
    """For each way: calls a second, CPU time of a call, and the ratio to a loop."""
    found = []
    for name in turns[0]:
        base = BASES.get(name, "delay")
        rate = Spread.of([count / turn[name][0] for turn in turns])
        cpu = Spread.of([turn[name][1] / count for turn in turns])
        ratio = Spread.of([turn[base][0] / turn[name][0] for turn in turns])
        cells = [spread_text(rate, 1, 0), spread_text(cpu, 1e6, 0), spread_text(ratio, 1, 1)]
        found.append([broker, name, *cells])
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--brokers", nargs="+", default=list(BROKERS), choices=BROKERS)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--ways", nargs="+", help="in place of all; `delay` has to be one")
    options = parser.parse_args(arguments)
    table = []
    for broker in options.brokers:
        sending = Sending(os.environ[BROKERS[broker]], options.calls)
        try:
            names = options.ways or list(sending.ways)
            turns = [sending.turn(names) for _ in range(options.turns)]
        finally:
            sending.close()
        table += rows(broker, turns, options.calls)
    print(simple_table(["broker", "way", "calls/s", "CPU of a call, µs", "ratio"], table))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
