"""What is in a message is data: it is neither opened, nor evaluated, nor a format."""

from __future__ import annotations

import ast
import json
import logging
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.worker import state as worker_state
from nonsense import Sent, call

import celery_batches
from kit.clock import Clock
from kit.endings import TASKS
from kit.log import Problems
from kit.worker import InProcessWorker, deliver

#: Not to be found in any source, so that whatever it is in has come from a message.
TOKEN = "".join(["TOK", "EN"])

CANARY = f"%s%n%(name)s%(levelname){{0.__class__.__init__.__globals__}}{{}}{TOKEN}"


class Explosive:
    """A pickle of this appends to `exploded` when it is opened."""

    def __reduce__(self) -> Any:
        return explode, (TOKEN,)


exploded: list[str] = []


def explode(*args: str) -> None:
    exploded.append(args[0])


class Audit:
    """What Python says of code that it makes from data, while it is asked to listen."""

    EVENTS = frozenset({"exec", "compile", "pickle.find_class", "os.system", "subprocess.Popen"})

    def __init__(self) -> None:
        self.listening = False
        self.heard: list[tuple[str, str]] = []
        sys.addaudithook(self.hear)  # For good: there is no way to take it back.

    def hear(self, event: str, args: Any) -> None:
        if self.listening and event in self.EVENTS:
            self.heard.append((event, repr(args)))


audit = Audit()


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str]]]:
    audit.heard.clear()
    exploded.clear()
    audit.listening = True
    yield audit.heard
    audit.listening = False


def explosives() -> list[Sent]:
    """Messages with a pickle, or what YAML makes of one, wherever there is room for it."""
    bomb = pickle.dumps(Explosive())
    payload = pickle.dumps([[Explosive()], {}, {}])
    yaml = f"[[!!python/object/apply:{__name__}.explode [{TOKEN}]], {{}}, {{}}]".encode()
    found = []
    for content, content_type in [
        (payload, "application/x-python-serialize"),
        (payload, "application/json"),
        (payload, "application/data"),
        (payload, "text/plain"),
        (yaml, "application/x-yaml"),
        (bomb, "application/x-python-serialize"),
    ]:
        for encoding in ("binary", "utf-8", None):
            sent = call("unit.click", f"id-{len(found)}")
            sent.body, sent.content_type, sent.content_encoding = content, content_type, encoding
            found.append(sent)
    for name in ("argsrepr", "eta", "id", "shadow", "x", "stamps", "callbacks", "chord", "root_id"):
        found.append(call("unit.click", "id"))
        found[-1].headers[name] = bomb
    return found


def test_no_pickle_or_yaml_of_a_stranger_is_opened(
    tasks: Any, clock: Clock, heard: list[tuple[str, str]]
) -> None:
    """Not in the worker, not in the pool: all that is unpickled there is what the worker made."""
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        for sent in explosives():
            for amqp in (True, False):
                deliver(worker, sent, amqp=amqp)
        delivered = len(worker.deliveries)
        before_the_pool = [event for event in heard if event[0] == "pickle.find_class"]
        worker.finish()
        assert len(worker.channel.said) == delivered
        worker.assert_empty()
    assert worker.runs, "headers that are just data are no reason to refuse a call"
    assert exploded == []
    assert before_the_pool == []
    unpickled = {what for event, what in heard if event == "pickle.find_class"}
    assert any("SimpleRequest" in what for what in unpickled), "the audit hears nothing"
    assert not [what for what in unpickled if "explode" in what]
    assert not [what for _, what in heard if TOKEN in what]


def test_the_bomb_would_go_off(tasks: Any, clock: Clock, heard: list[tuple[str, str]]) -> None:
    """If the user accepts pickle, a pickle is opened, as in Celery: the test above can fail."""
    tasks.conf.accept_content = ["json", "pickle"]
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        deliver(worker, explosives()[0])
    assert exploded
    assert any("explode" in what for _, what in heard)


def canaries() -> list[Sent]:
    """Calls with formats in every place; the last ones are refused."""
    embed = {"callbacks": [CANARY], "errbacks": [CANARY], "chain": [CANARY], "chord": CANARY}
    found = []
    for number in range(12):
        task_id = f"{number}{CANARY}"
        sent = call(TASKS[number % 3], task_id, shadow=CANARY, root_id=CANARY, lang=CANARY)
        for name in ("group", "argsrepr", "kwargsrepr", "origin", "x", CANARY, "parent_id"):
            sent.headers[name] = CANARY
        sent.headers.update(stamped_headers=[CANARY], stamps={CANARY: [CANARY]})
        sent.properties.update(reply_to=CANARY, correlation_id=CANARY, priority=CANARY)
        payload = [[CANARY], {CANARY: CANARY}, embed if number % 2 else {}]
        sent.body = json.dumps(payload).encode()
        found.append(sent)
    for name in ("id", "eta", "expires", "timelimit", "retries", "stamps", "task", "compression"):
        sent = call("unit.click", CANARY, [CANARY])
        sent.headers[name] = [CANARY] if name in ("id", "timelimit") else CANARY
        found.append(sent)
    for content in (
        CANARY.encode(),
        json.dumps(CANARY).encode(),
        json.dumps([CANARY] * 3).encode(),
    ):
        sent = call("unit.click", CANARY)
        sent.body = content
        found.append(sent)
    return found


class Records(logging.Handler):
    """Every record of the log, down to level DEBUG, formatted as it would be."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(logging.Formatter("%(message)s").format(record))


@pytest.mark.parametrize("ending", ["run", "lose", "raise", "revoke"])
def test_no_format_comes_from_a_message(
    tasks: Any, clock: Clock, caplog: Any, heard: list[tuple[str, str]], ending: str
) -> None:
    """What is logged of a message are arguments of a log line, never the line."""
    caplog.set_level(logging.DEBUG)
    for name in ("celery", "celery_batches"):
        caplog.set_level(logging.DEBUG, logger=name)
    records = Records()
    logging.getLogger().addHandler(records)
    if ending == "raise":
        tasks.tasks["unit.click"].run = tasks.tasks["unit.late"].run = raise_what_it_got
    try:
        with Problems() as problems:
            worker = InProcessWorker(tasks, clock, problems)
            for sent in canaries():
                deliver(worker, sent)
            if ending == "revoke":
                worker_state.revoked.update([r.id for r in worker.buffered[::2]])
            worker.advance(1e9)
            while worker.pool.calls:
                worker.run_batch(lose=ending == "lose")
            worker.assert_empty()
    finally:
        logging.getLogger().removeHandler(records)
    told = [line for line in records.lines if TOKEN in line]
    assert told, "nothing was logged of the messages"
    assert not [r for r in records.records if TOKEN in str(r.msg)]
    # A format that is used shows what it stands for.
    assert not [line for line in told if "<class" in line or "__globals__':" in line]
    assert not [what for _, what in heard if TOKEN in what]


def raise_what_it_got(requests: Any) -> None:
    raise ValueError(requests[0].args, requests[0])


def calls_in(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


@pytest.mark.parametrize(
    "path", sorted(Path(celery_batches.__file__).parent.glob("*.py")), ids=lambda path: path.name
)
def test_formats_are_constants_and_nothing_is_evaluated(path: Path) -> None:
    """Read in the source: no line of the log is put together, and no data is made into code."""
    for node in calls_in(path.read_text()):
        name = ast.unparse(node.func)
        assert name not in ("eval", "exec", "compile", "__import__"), ast.unparse(node)
        assert not name.endswith((".loads", ".load", ".format", ".format_map")), ast.unparse(node)
        if name.startswith("logger.") and name != "logger.isEnabledFor":
            line = node.args[1] if name == "logger.log" else node.args[0]
            constant = isinstance(line, ast.Constant) or ast.unparse(line).isupper()
            assert constant, ast.unparse(node)
