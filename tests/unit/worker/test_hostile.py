"""Whatever a stranger sends: the worker goes on, and neither it nor a good message is lost."""

from __future__ import annotations

import ast
import json
import logging
import pickle
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery import signals
from celery.worker import state as worker_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.compression import compress
from nonsense import BODIES, HEADERS, NONSENSE, PROTOCOLS, Sent, call, nested, nonsense
from unit.inprocess import Delivery, InProcessWorker, Problems
from unit.support import Clock

import celery_batches
from celery_batches import Batches

TASKS = ["unit.click", "unit.late", "unit.again"]


@pytest.fixture
def tasks(app: Any) -> Any:
    """An app with three batch tasks; ``app.ran`` are the ids of each batch that was run."""
    app.conf.worker_send_task_events = True
    app.ran = []

    def end(requests: Any) -> None:
        app.ran.append([request.id for request in requests])
        for number, request in enumerate(requests):
            repr((request, request.headers, request.redelivered, request.chord))
            if number % 4 == 0:
                request.mark_as_done(number)
            elif number % 4 == 1:
                app.backend.mark_as_done(request.id, number, request=request)
            elif number % 4 == 2:
                request.mark_as_failure(ValueError("no"))

    def again(self: Any, requests: Any) -> None:
        app.ran.append([request.id for request in requests])
        raise self.retry(exc=KeyError("again"), max_retries=1)

    class Handled(Batches):
        def on_success(self, *args: Any) -> None:
            self.update_state(state="SEEN")

        def on_failure(self, *args: Any) -> None:
            self.update_state(state="SEEN")

    options: dict[str, Any] = {"flush_every": 4, "flush_interval": 10}
    app.task(name="unit.click", base=Batches, **options)(end)
    app.task(name="unit.late", base=Handled, acks_late=True, **options)(end)
    app.task(
        name="unit.again", base=Batches, bind=True, autoretry_for=(OSError,), retry_backoff=True
    )(again)
    return app


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(time.monotonic())  # Celery turns an ETA into a time of this clock.
    monkeypatch.setattr("celery_batches.worker.strategy.monotonic", clock)
    return clock


@pytest.fixture
def revoked() -> Iterator[list[Any]]:
    """What the worker has dropped since it was revoked or has expired."""
    dropped: list[Any] = []

    def drop(request: Any = None, **_: Any) -> None:
        dropped.append(request.id)

    signals.task_revoked.connect(drop, weak=False)
    yield dropped
    signals.task_revoked.disconnect(drop)


def deliver(worker: InProcessWorker, sent: Sent, *, amqp: bool = True, again: Any = False) -> int:
    return worker.deliver(Delivery(sent, amqp=amqp, redelivered=again))


# -- Each thing that can be wrong, alone ------------------------------------------------------


@pytest.mark.parametrize("what", NONSENSE)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nonsense_is_refused_alone(tasks: Any, clock: Clock, protocol: str, what: str) -> None:
    """It is settled once and logged once; the neighbours run, and nothing is left of it."""
    bad = nonsense(what, call("unit.late", "bad", [0], protocol))
    if bad == call("unit.late", "bad", [0], protocol):
        pytest.skip("this protocol has no such thing")
    for amqp in (True, False):
        with Problems() as problems:
            worker = InProcessWorker(tasks, clock, problems)
            good = [deliver(worker, call("unit.late", f"id-{i}"), amqp=amqp) for i in range(2)]
            tag = deliver(worker, bad, amqp=amqp)
            good += [deliver(worker, call("unit.late", f"id-{i}"), amqp=amqp) for i in (2, 3)]
            assert worker.batches == [good]
            worker.finish()
            assert [worker.channel.of(tag) for tag in good] == [["ack"]] * 4
            assert worker.channel.of(tag) in (["reject"], ["ack"])
            assert len(worker.refusals) == 1, worker.refusals
            undecodable = "Can't decode message body" in worker.refusals[0]
            assert worker.channel.of(tag) == ["ack" if undecodable else "reject"]
            worker.assert_empty()


@pytest.mark.parametrize(
    ("attribute", "value"), [("body", None), ("content_encoding", 5), ("content_type", [])]
)
def test_what_can_only_be_pushed_to_redis(
    tasks: Any, clock: Clock, attribute: str, value: Any
) -> None:
    """Without a body, Celery could not even log that it refuses a message."""
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        for name in ("unit.click", "no.such.task"):
            sent = call(name, "bad")
            setattr(sent, attribute, value)
            tag = deliver(worker, sent, amqp=False)
            assert worker.channel.of(tag) == ["reject"]
        assert len(worker.refusals) == 2
        worker.assert_empty()


@pytest.mark.parametrize("amqp", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        *({"x": 5}, {"shadow": ""}, {"shadow": "%s"}, {"retries": None}, {"timelimit": None}),
        *({"timelimit": []}, {"timelimit": [0, 1.5]}, {"stamps": []}, {"stamped_headers": []}),
        *({"stamped_headers": ["a"], "stamps": {"a": ["b"]}}, {"stamped_headers": ["a"]}),
        *({"callbacks": 5}, {"get": 5, "update": 5, "__class__": 5, "__dict__": 5}),
        *({"root_id": []}, {"group": {}}, {"argsrepr": 5}, {"x": json.loads(nested(200))}),
        *({"parent_id": "\ud800"}, {"x": b"\xff"}, {"ignore_result": "x"}, {"headers": 5}),
    ],
    ids=str,
)
def test_what_is_odd_but_can_be_run_is_run(
    tasks: Any, clock: Clock, headers: dict[str, Any], amqp: bool
) -> None:
    """A header that is nobody's business but the call's own does not keep it from running."""
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        sent = [call("unit.late", f"id-{i}", **headers) for i in range(4)]
        tags = [deliver(worker, one, amqp=amqp) for one in sent]
        worker.finish()
        assert worker.batches == [tags]
        assert worker.refusals == []
        assert [worker.channel.of(tag) for tag in tags] == [["ack"]] * 4
        worker.assert_empty()


@pytest.mark.parametrize("ident", [5, UUID(int=7)], ids=repr)
def test_an_id_that_is_no_string_but_a_key(tasks: Any, clock: Clock, ident: Any) -> None:
    """Celery runs such calls, where no result backend objects, and so do batches."""
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        tags = [deliver(worker, call("unit.late", f"id-{i}")) for i in range(3)]
        tags.append(deliver(worker, call("unit.late", ident)))
        worker.finish()
        assert worker.batches == [tags]
        assert [worker.channel.of(tag) for tag in tags] == [["ack"]] * 4


@pytest.mark.parametrize("depth", [10, 100, 200, 300, 400, 430, 460, 490, 600, 900])
@pytest.mark.parametrize("where", ["args", "headers"])
def test_deep_nesting_never_takes_a_batch_along(
    tasks: Any, clock: Clock, where: str, depth: int
) -> None:
    """What JSON can just decode may be too deep to be sent to the pool: it is refused at once."""
    value = json.loads(nested(depth))
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        good = [deliver(worker, call("unit.late", f"id-{i}")) for i in range(3)]
        deep = call("unit.late", "deep", **({"x": value} if where == "headers" else {}))
        if where == "args":
            deep.body = f"[[{nested(depth)}], {{}}, {{}}]".encode()
        tag = deliver(worker, deep)
        worker.finish()
        assert all(worker.channel.of(tag) == ["ack"] for tag in good)
        assert worker.runs[tag] + len(worker.refusals) == 1
        assert len(worker.channel.of(tag)) == 1
        if depth <= 200:
            assert worker.runs[tag] == 1
        worker.assert_empty()


def test_a_number_of_retries_without_bounds(tasks: Any, clock: Clock) -> None:
    """The retries that a message claims to have had do not become a number without end."""

    @tasks.task(name="unit.backoff", base=Batches, autoretry_for=(KeyError,), retry_backoff=True)
    def backoff(requests: Any) -> None:
        raise KeyError("x")

    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        numbers = {"none": None, "small": 1, "large": 10**12, "huge": 2**62}
        for task_id, retries in numbers.items():
            deliver(worker, call("unit.backoff", task_id, retries=retries))
        worker.finish()
        assert [worker.channel.of(tag) for tag in range(4)] == [["ack"]] * 4
        worker.assert_empty()
    states = {task_id: tasks.AsyncResult(task_id).state for task_id in numbers}
    assert states == {"none": "FAILURE", "small": "RETRY", "large": "FAILURE", "huge": "FAILURE"}


def test_no_header_passes_for_what_runs_the_batch(tasks: Any, clock: Clock) -> None:
    """Nor does a message say that its call is run eagerly."""
    seen = []

    class Curious(Batches):
        def on_success(self, *args: Any) -> None:
            seen.append((self.request.is_eager, self.request.get("_celery_batches_running")))

    @tasks.task(name="unit.curious", base=Curious, flush_every=1)
    def curious(requests: Any) -> None: ...

    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        sent = call("unit.curious", "1", is_eager=True, _celery_batches_running="x")
        payload = json.loads(sent.body)
        payload[2].update(is_eager=True, _celery_batches_running="x")
        sent.body = json.dumps(payload).encode()
        deliver(worker, sent)
        worker.finish()
        assert problems.lines == []
    assert seen == [(False, None)]


def test_a_look_up_that_fails_is_the_concern_of_one(tasks: Any, clock: Clock) -> None:
    """A call that comes again with callbacks that cannot be called does not fail its neighbours."""
    tasks.conf.worker_deduplicate_successful_tasks = True
    tasks.backend.persistent = True
    tasks.backend.mark_as_done("bad", 1)
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        good = [deliver(worker, call("unit.late", f"id-{i}")) for i in range(3)]
        sent = call("unit.late", "bad")
        sent.body = b'[[], {}, {"callbacks": 5, "errbacks": null, "chain": null, "chord": null}]'
        tag = deliver(worker, sent, again=True)
        worker.finish()
        assert tasks.ran == [["id-0", "id-1", "id-2"]]
        assert [worker.channel.of(tag) for tag in [*good, tag]] == [["ack"]] * 4
        worker.assert_empty()


# -- Anything, in any order ------------------------------------------------------------------

FORMATS = ["%s%n%(x)s", "{0.__class__}", "{}", "%", "\x00", "\ud800", "a\nb", "ü", "", "0"]

scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**70), 10**400])
    | st.floats()
    | st.sampled_from(FORMATS)
    | st.text(max_size=5)
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=3)
    ),
    max_leaves=6,
)
header_values = (
    json_values
    | st.sampled_from([b"", b"\xff", datetime(2020, 1, 1), Decimal("1.5"), Decimal("NaN")])
    | st.sampled_from([json.loads(nested(depth)) for depth in (5, 100, 800)])
    | st.just("x" * 100_000)
)
names = st.sampled_from(
    [
        *HEADERS,
        *("lang", "group", "group_index", "root_id", "parent_id", "argsrepr", "kwargsrepr"),
        *("origin", "ignore_result", "replaced_task_nesting", "compression", "args", "kwargs"),
        *("callbacks", "errbacks", "chain", "chord", "properties", "reply_to", "correlation_id"),
        *("hostname", "delivery_info", "headers", "is_eager", "called_directly", "logfile"),
        *("_celery_batches_running", "update", "__dict__", "__class__", "get", "x", "utc"),
    ]
)
canvas = [5, [5], [{}], [{"task": "unit.click"}], {"task": "x"}, "x", {}]
#: The same each time: Hypothesis has to find the same message again.
LATER = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
ids = st.sampled_from([f"id-{i}" for i in range(12)])


@st.composite
def good_calls(draw: Any) -> Sent:
    """A call as a client of Celery sends it."""
    more: dict[str, Any] = {"timelimit": draw(st.sampled_from([[None, None], [60, 30]]))}
    if draw(st.integers(0, 3)) == 0:
        more["eta"] = LATER
    task, protocol = draw(st.sampled_from(TASKS)), draw(st.sampled_from(PROTOCOLS))
    sent = call(task, draw(ids), [draw(json_values)], protocol, **more)
    if draw(st.integers(0, 9)) == 0:
        sent.body, sent.headers["compression"] = compress(sent.body, "zlib")
    return sent


@st.composite
def odd_calls(draw: Any) -> Sent:
    """A call with something about it that is not as it should be; it may still be one."""
    sent: Sent = draw(good_calls())
    for _ in range(draw(st.integers(1, 2))):
        draw(st.sampled_from([change_header, change_header, change_body, lie]))(draw, sent)
    return sent


def change_header(draw: Any, sent: Sent) -> None:
    name = draw(names)
    if draw(st.integers(0, 4)) == 0:
        sent.headers.pop(name, None)
    else:
        sent.headers[name] = draw(st.sampled_from(HEADERS.get(name, canvas)) | header_values)


def change_body(draw: Any, sent: Sent) -> None:
    how = draw(st.sampled_from(["other", "cut", "any", "field", "field"]))
    if how == "other":
        sent.body = draw(st.sampled_from(BODIES) | st.binary(max_size=9))
    elif how == "cut":
        sent.body = sent.body[: draw(st.integers(0, len(sent.body)))]
    elif how == "any":
        sent.body = json.dumps(draw(json_values)).encode()
    elif sent.body.startswith((b"[", b"{")):
        change_field(draw, sent)


def change_field(draw: Any, sent: Sent) -> None:
    try:
        payload = json.loads(sent.body)
    except (ValueError, RecursionError):
        return
    fields = payload[2] if isinstance(payload, list) and len(payload) > 2 else payload
    if isinstance(fields, dict):
        name = draw(names)
        fields[name] = draw(st.sampled_from(HEADERS.get(name, canvas)) | json_values)
        sent.body = json.dumps(payload).encode()


def lie(draw: Any, sent: Sent) -> None:
    types = ["application/json", "application/x-python-serialize", "text/plain", "x/y", "", None]
    encodings = ["utf-8", "binary", "utf-16", "rot13", "hex", "no-such", "", None]
    sent.content_type = draw(st.sampled_from(types))
    sent.content_encoding = draw(st.sampled_from(encodings))


amqp = st.booleans()
steps = st.lists(
    st.tuples(st.just("good"), good_calls(), amqp)
    | st.tuples(st.just("odd"), odd_calls(), amqp)
    | st.tuples(st.just("revoke"), ids)
    | st.tuples(st.just("expire"), st.integers(0, 9))
    | st.tuples(st.just("clock"), st.sampled_from([1, 5, 10, 3600]))
    | st.tuples(st.sampled_from(["run", "lose"])),
    min_size=1,
    max_size=14,
)


def play(worker: InProcessWorker, steps: list[Any]) -> tuple[set[int], set[str]]:
    """Do all that; return which deliveries were good, and the ids of what need not be run."""
    goods, dropped = set(), set()
    for step, *what in steps:
        match step, what:
            case "good", [sent, amqp]:
                goods.add(deliver(worker, sent, amqp=amqp))
            case "odd", [sent, amqp]:
                deliver(worker, sent, amqp=amqp, again="x")
            case "revoke", [task_id]:
                dropped.add(task_id)
                worker_state.revoked.add(task_id)
            case "expire", [number] if worker.buffered:
                request = worker.buffered[number % len(worker.buffered)]
                request.expires = datetime(2001, 1, 1)
                dropped.add(request.id)
            case "clock", [seconds]:
                worker.move_clock(seconds)
            case (("run" | "lose"), _):
                worker.run_batch(lose=step == "lose")
    worker.finish()
    return goods, dropped


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps)
def test_anything_in_any_order(
    tasks: Any, clock: Clock, revoked: list[Any], steps: list[Any]
) -> None:
    """Each message is run, dropped or refused, once; what is refused is logged, once."""
    worker_state.reset_state()
    worker_state.revoked.clear()
    revoked.clear()
    with Problems() as problems:
        worker = InProcessWorker(tasks, clock, problems)
        goods, dropped = play(worker, steps)
        for tag, delivery in enumerate(worker.deliveries):
            assert len(worker.channel.of(tag)) == 1, (worker.channel.of(tag), delivery)
            assert worker.runs[tag] <= 1
            if tag in goods:
                task_id = delivery.sent.properties["correlation_id"]
                assert worker.runs[tag] == 1 or task_id in dropped, delivery
                assert worker.channel.of(tag) == ["ack"]
        not_run = len(worker.deliveries) - len(worker.runs)
        assert len(worker.refusals) == not_run - len(revoked), worker.refusals
        worker.assert_empty()


# -- What is in a message is data ------------------------------------------------------------

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
            worker.move_clock(1e9)
            while worker.pool.given:
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
