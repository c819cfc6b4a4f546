"""How a message of a stranger is delivered."""

from __future__ import annotations

from typing import Any

from nonsense import Sent
from unit.inprocess import Delivery, InProcessWorker

TASKS = ["unit.click", "unit.late", "unit.again"]


def deliver(worker: InProcessWorker, sent: Sent, *, amqp: bool = True, again: Any = False) -> int:
    return worker.deliver(Delivery(sent, amqp=amqp, redelivered=again))
