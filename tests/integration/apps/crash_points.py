"""The steps of a worker between "the body has returned" and "the broker was told", by name.

A step is a call of a function of Celery's or of this package. In the worker these functions are
wrapped, and announce that they begin or have ended: "link published: before", "link published:
after". The test names one of these points, and the N-th time that a call of the task comes there
the worker loses what the test says: once, since it takes the order away first.
"""

import contextlib
import json
import os
import signal
import socket
from functools import wraps
from pathlib import Path
from threading import Event
from time import monotonic
from typing import ClassVar

from billiard.pool import READY
from celery import current_app, signals
from celery.concurrency import asynpool
from celery.worker import request as worker_request
from celery.worker import strategy
from kombu.message import Message
from redis.client import Pipeline
from redis.commands.core import Script
from reporting import report

from celery_batches.pool import settle
from celery_batches.worker import acks, endings

#: The order of the test, while it is not carried out: JSON with case, point, nth and way.
ORDER = Path(__file__).parent / "order.json"
#: A byte for each call of the case that is acknowledged.
ACKED = ORDER.with_name("acked")
#: Where the test cuts connections when it is asked to.
NETWORK = os.environ.get("NETWORK", "")


class State:
    """What this process knows of itself."""

    main = 0
    #: Whether the states of a batch are collected now, and none is sent.
    collects = False
    #: Whether this process of the pool has run a call of the tasks, and not reported it yet.
    has_run = False
    counts: ClassVar[dict[int, int]] = {}


def is_measured(name):
    return bool(name) and name.startswith(("batch", "plain"))


def reach(point):
    """Come to a point; lose something there if the test has ordered so."""
    try:
        order = json.loads(ORDER.read_text())
    except FileNotFoundError:
        return
    if order["point"] != point:
        return
    case = order["case"]
    count = State.counts[case] = State.counts.get(case, 0) + 1
    if count != order["nth"]:
        return
    try:
        ORDER.unlink()
    except FileNotFoundError:
        return
    wait_until_acknowledged(order)
    report("lost", case=case)
    LOSSES[order["way"]](order["way"])


def wait_until_acknowledged(order):
    """With early acknowledgement, wait for what would only by chance come later than the body."""
    deadline = monotonic() + 5
    while ACKED.stat().st_size < order["acked"] and monotonic() < deadline:
        Event().wait(0.01)


def note_acks(count):
    with ACKED.open("ab") as acked:
        acked.write(b"." * count)


def kill_process(way):
    """Kill the process of the pool: this, or that of this worker."""
    if os.getpid() != State.main:
        os.kill(os.getpid(), signal.SIGKILL)
    for pid in Path(f"/proc/{State.main}/task/{State.main}/children").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


def kill_worker(way):
    if os.getpid() != State.main:
        # What Redis is just giving to the main process would be lost with it.
        ask_test("arrive")
    os.killpg(os.getpgrp(), signal.SIGKILL)


def ask_test(way):
    """Have the test do it, and wait until it is done."""
    with socket.socket(socket.AF_UNIX) as network:
        network.connect(NETWORK)
        network.sendall(way.encode())
        network.recv(10)


LOSSES = {
    "process killed": kill_process,
    "worker killed": kill_worker,
    "broker cut": ask_test,
    "backend away": ask_test,
}


def around(owner, attribute, name_of, *, count=None):
    """Wrap a function; `name_of` gets its arguments and says what it is called, or nothing."""
    original = getattr(owner, attribute)

    @wraps(original)
    def wrapped(*args, **kwargs):
        name = name_of(*args, **kwargs)
        if name is None:
            return original(*args, **kwargs)
        reach(f"{name}: before")
        returned = original(*args, **kwargs)
        if count is not None:
            note_acks(count(*args, returned))
        reach(f"{name}: after")
        return returned

    setattr(owner, attribute, wrapped)


def task_of(request):
    return getattr(request, "task", None) or getattr(request, "name", None)


def name_of_state(backend, task_id, result, state, traceback=None, request=None, **kwargs):
    if State.collects or state not in ("SUCCESS", "FAILURE", "RETRY"):
        return None
    return "state stored" if is_measured(task_of(request)) else None


def name_of_part(backend, request, *args, **kwargs):
    return "chord part counted" if is_measured(task_of(request)) else None


def name_of_write(pipeline, *args, **kwargs):
    """Redis is told, by a transaction or a script: a state, or a chord part."""
    return "written to Redis" if State.has_run else None


def name_of_script(script, *args, client=None, **kwargs):
    # In a pipeline it is sent with that.
    return "written to Redis" if State.has_run and not isinstance(client, Pipeline) else None


def name_of_publishing(task):
    if is_measured(task):
        return "retry published"
    return f"{task} published" if task in ("link", "next", "callback", "errback") else None


@signals.before_task_publish.connect
def before_publish(sender, **kwargs):
    if State.main:
        reach(f"{name_of_publishing(sender)}: before")


@signals.after_task_publish.connect
def after_publish(sender, **kwargs):
    if State.main:
        reach(f"{name_of_publishing(sender)}: after")


@signals.task_success.connect
@signals.task_failure.connect
@signals.task_retry.connect
@signals.task_postrun.connect
def on_signal(sender, signal, **kwargs):
    if State.main and is_measured(sender.name):
        reach(SIGNALS[id(signal)])


SIGNALS = {
    id(getattr(signals, name)): name
    for name in ("task_success", "task_failure", "task_retry", "task_postrun")
}


def wrap_pool():
    """Wrap what runs in the process of the pool."""
    # As a class attribute: a backend with a method of its own has its states stored one by one.
    for method, name_of in (
        ("store_result", name_of_state),
        ("on_chord_part_return", name_of_part),
    ):
        kinds = type(current_app.backend).__mro__
        around(next(kind for kind in kinds if method in vars(kind)), method, name_of)
    around(Pipeline, "execute", name_of_write)
    around(Script, "__call__", name_of_script)
    store = settle.store_in_bulk

    def collecting(backend, states):
        if not any(states):
            return store(backend, states)
        reach("states stored together: before")
        State.collects = True
        try:
            stored = store(backend, states)
        finally:
            State.collects = False
        if any(stored):
            reach("states stored together: after")
        return stored

    settle.store_in_bulk = collecting
    loop = asynpool.Worker.workloop

    def workloop(self, *args, **kwargs):
        self.outq = Reports(self.outq)
        return loop(self, *args, **kwargs)

    asynpool.Worker.workloop = workloop


class Reports:
    """The end of the pipe in which a process of the pool reports what it has run."""

    def __init__(self, pipe):
        self._pipe = pipe

    def __getattr__(self, name):
        return getattr(self._pipe, name)

    def put(self, message):
        has_run, State.has_run = State.has_run, State.has_run and message[0] != READY
        has_run &= message[0] == READY
        if has_run:
            reach("report sent: before")
        self._pipe.put(message)
        if has_run:
            reach("report sent: after")


def wrap_main():
    """Wrap what runs in the main process."""
    on_success = endings.BatchEndings.on_success

    @wraps(on_success)
    def read(self, *args, **kwargs):
        reach("report read")
        return on_success(self, *args, **kwargs)

    endings.BatchEndings.on_success = read
    around(worker_request.Request, "on_success", name_of_notice)
    make_class = strategy.create_request_cls

    def create_request_cls(*args, **kwargs):
        made = make_class(*args, **kwargs)
        told = made.on_success

        def on_success(self, *args, **kwargs):
            if is_measured(self.name):
                reach("report read")
            return told(self, *args, **kwargs)

        made.on_success = on_success
        around(made, "on_success", name_of_notice)
        return made

    strategy.create_request_cls = create_request_cls
    around(worker_request.Request, "send_event", name_of_event)
    around(Message, "ack", name_of_ack, count=lambda *args: 1)
    around(acks, "acknowledge_in_bulk", name_of_acks, count=count_acks)
    # What a process was running is lost at the second look after it has gone.
    asynpool.AsynPool.timers = property(lambda self: {self.maintain_pool: 0.1})


def name_of_notice(request, *args, **kwargs):
    return "request notified" if is_measured(request.name) else None


def name_of_event(request, kind, **fields):
    is_last = kind in ("task-succeeded", "task-failed", "task-retried")
    return "event sent" if is_last and is_measured(request.name) else None


def name_of_ack(message, *args, **kwargs):
    # A channel of this package is for marking it only, when all were acknowledged together.
    is_sent = not type(message.channel).__module__.startswith("celery_batches")
    return "ack written" if is_sent and is_measured(message.headers.get("task")) else None


def name_of_acks(channel, messages, *args, **kwargs):
    names = [message.headers.get("task") for message in messages]
    return "acks written together" if any(map(is_measured, names)) else None


def count_acks(channel, messages, shortcuts, is_done):
    return len(messages) if is_done else 0


@signals.worker_init.connect
def on_worker_init(**kwargs):
    State.main = os.getpid()
    wrap_pool()
    wrap_main()


@contextlib.contextmanager
def body(numbers):
    """A run of the body of these calls."""
    report("run", numbers=numbers)
    State.has_run = True
    yield
    reach("body returned")
