"""Links, chains, groups and chords of batch tasks: the same as for an ordinary task.

Each scenario is played with an ordinary task and with its twins, batch tasks which say in different
ways how each call ended. One worker plays all of them at once, and the tests look at what it did.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from celery import chain, chord, group
from celery.backends.base import Backend
from celery.result import GroupResult
from harness import Deployment, Reports, Worker, options_for
from kombu.utils.uuid import uuid

#: The batch tasks of the app.
KINDS = ["idiom", "marks", "raises"]
TWINS = ["plain", *KINDS]

PENDING = "PENDING"
UNKNOWN = "a task that did not run"
FAILED = ("ValueError", "less than nothing")


def chord_failed(by: str = "member(-9)") -> tuple[str, str]:
    return "ChordError", f"Dependency {by} raised ValueError('less than nothing')"


@dataclass
class Kit:
    """What a scenario is made of: signatures of the tasks of the app, all with its tag."""

    site: Deployment
    kind: str
    tag: str

    def __getattr__(self, role: str) -> Callable[..., Any]:
        task = getattr(self.site.module, self.kind if role == "member" else role)
        return lambda *args, **kwargs: task.s(*args, tag=self.tag, **kwargs)

    def sends(self, *args: Any, **options: Any) -> Any:
        return self.member(*args).apply_async(**options)


@dataclass(frozen=True)
class Scenario:
    """A canvas, and what comes of it.

    `runs` has one entry for each run of a task: `note(2)`, or, with an errback that was called and
    not sent, that and what it was told. Tasks that do not run have none.
    """

    play: Callable[[Kit], Any]
    runs: list[str]
    result: Any
    has_chord: bool
    kinds: Sequence[str]


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *runs: str, result: Any, has_chord: bool = False, kinds: Sequence[str] = TWINS
) -> Callable[[Callable[[Kit], Any]], Callable[[Kit], Any]]:
    def add(play: Callable[[Kit], Any]) -> Callable[[Kit], Any]:
        if kinds:
            SCENARIOS[play.__name__] = Scenario(play, sorted(runs), result, has_chord, kinds)
        return play

    return add


# --- link


@scenario("member(1)", "note(2)", result=2)
def link(k):
    return k.sends(1, link=k.note())


@scenario("member(1)", "note(2)", "note(2, 'again')", "step(2)", result=2)
def several_links(k):
    return k.sends(1, link=[k.note(), k.note("again"), k.step()])


@scenario("member(1)", "step(2)", "step(2, 3)", result=2)
def link_to_a_group(k):
    return k.sends(1, link=group(k.step(), k.step(3)))


@scenario("member(1)", "note(2)", "step(2)", "step(2, 3)", "step(2, 4)", result=2)
def links_to_a_group_and_others(k):
    return k.sends(1, link=[group(k.step(), k.step(3)), k.note(), k.step(4)])


@scenario("member(1)", "step(2)", "step(3)", result=2)
def link_to_a_chain(k):
    return k.sends(1, link=chain(k.step(), k.step()))


@scenario("member(1)", "note('as it is')", result=2)
def immutable_link(k):
    return k.sends(1, link=k.note("as it is").set(immutable=True))


@scenario("member(1)", "member(2)", "note(3)", result=2)
def link_to_a_member_with_a_link(k):
    callback = k.member()
    callback.link(k.note())
    return k.sends(1, link=callback)


@scenario("member(1)", "note(2)", result=None)
def link_of_a_call_whose_result_is_not_wanted(k):
    return k.sends(1, link=k.note(), ignore_result=True)


@scenario("member(1)", "note(2)", "step(2)", result=2)
def links_inherit_the_priority(k):
    # Redis has the same queue for priorities from 0 to 2.
    return k.sends(1, link=[k.note(), k.step()], priority=2)


@scenario("member(1, how='retry')", "member(1, how='retry')", "note(2)", result=2)
def link_of_a_retried_call(k):
    return k.member(1, how="retry").apply_async(link=k.note())


# --- link_error

CALLED = ["called_errback(member(-9))", "note('from an errback')"]


@scenario("member(-9)", "sent_errback(member(-9))", result=FAILED)
def errback_with_the_task_id(k):
    return k.sends(-9, link=k.note(), link_error=k.sent_errback())


@scenario("member(-9)", *CALLED, result=FAILED)
def errback_with_the_exception(k):
    return k.sends(-9, link=k.note(), link_error=k.called_errback())


@scenario("member(-9)", *CALLED, "sent_errback(member(-9))", "note('as it is')", result=FAILED)
def several_errbacks(k):
    fixed = k.note("as it is").set(immutable=True)
    return k.sends(-9, link_error=[k.sent_errback(), fixed, k.called_errback()])


@scenario("member(-9)", "sent_errback(member(-9))", result=FAILED)
def errbacks_inherit_the_priority(k):
    return k.sends(-9, link_error=k.sent_errback(), priority=2)


@scenario("member(1)", result=2)
def errbacks_of_a_done_call(k):
    return k.sends(1, link_error=[k.sent_errback(), k.called_errback()])


# --- chain


@scenario("member(1)", "step(2, 10)", "step(13)", result=14)
def chain_that_begins_with_a_member(k):
    return chain(k.member(1), k.step(10), k.step()).apply_async()


@scenario("step(1)", "member(2, 10)", "step(13)", result=14)
def chain_with_a_member_in_the_middle(k):
    return chain(k.step(1), k.member(10), k.step()).apply_async()


@scenario("step(1)", "step(2)", "member(3, 10)", result=14)
def chain_that_ends_with_a_member(k):
    return chain(k.step(1), k.step(), k.member(10)).apply_async()


@scenario("member(1)", "member(2)", "member(3)", "note(4)", "note(2)", result=4)
def chain_of_members_with_links(k):
    first, last = k.member(1), k.member()
    first.link(k.note())
    last.link(k.note())
    return chain(first, k.member(), last).apply_async()


@scenario("member(1)", "member(5)", "step(7)", result=8)
def chain_of_immutable_signatures(k):
    five, seven = k.member(5), k.step(7)
    return chain(k.member(1), five.set(immutable=True), seven.set(immutable=True)).apply_async()


@scenario("member(1, how='retry')", "member(1, how='retry')", "step(2)", result=3)
def chain_with_a_retried_call(k):
    return chain(k.member(1, how="retry"), k.step()).apply_async()


@scenario("member(-9)", result=FAILED)
def chain_whose_first_step_fails(k):
    return chain(k.member(-9), k.step(), k.member(), k.step()).apply_async()


@scenario("step(1)", "member(2, -9)", "sent_errback(member(2, -9))", result=FAILED)
def chain_whose_middle_step_fails(k):
    return chain(k.step(1), k.member(-9), k.step()).apply_async(link_error=k.sent_errback())


@scenario("step(1)", "member(2, -9)", result=FAILED)
def chain_whose_last_step_fails(k):
    return chain(k.step(1), k.member(-9)).apply_async(link=k.note())


# --- group


@scenario("member(1)", "member(2)", "member(3)", "member(4)", result=[2, 3, 4, 5])
def group_of_members(k):
    return group(k.member(i) for i in (1, 2, 3, 4)).apply_async()


@scenario("member(1)", "member(-9)", "step(3)", result=FAILED)
def group_with_a_failing_member(k):
    return group(k.member(1), k.member(-9), k.step(3)).apply_async()


@scenario("member(1)", "step(2)", "step(3)", "member(4)", "note(5)", result=[4, 5])
def group_with_a_chain(k):
    other = k.member(4)
    other.link(k.note())
    return group(chain(k.member(1), k.step(), k.step()), other).apply_async()


# --- chord


@scenario(
    *(f"member({i})" for i in range(10)),
    "note([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])",
    result=list(range(1, 11)),
    has_chord=True,
)
def chord_of_several_batches(k):
    return chord([k.member(i) for i in range(10)], k.note()).apply_async()


@scenario(
    "member(1)", "step(2)", "member(3)", "step(4)", "step([2, 3, 4, 5])", result=15, has_chord=True
)
def chord_of_members_and_others(k):
    return chord([k.member(1), k.step(2), k.member(3), k.step(4)], k.step()).apply_async()


@scenario("step(1)", "step(2)", "member([2, 3])", result=6, has_chord=True)
def chord_with_a_member_as_its_body(k):
    return chord([k.step(1), k.step(2)], k.member()).apply_async()


@scenario("member(1)", "member(2)", "member([2, 3])", "note(6)", result=6, has_chord=True)
def chord_all_of_members(k):
    body = k.member()
    body.link(k.note())
    return chord([k.member(1), k.member(2)], body).apply_async()


@scenario("member(1)", "member(2)", "note('as it is')", result="as it is", has_chord=True)
def chord_with_an_immutable_body(k):
    body = k.note("as it is").set(immutable=True)
    return chord([k.member(1), k.member(2)], body).apply_async()


@scenario("member(1)", "member(2)", "note([2, 3])", result=[2, 3], has_chord=True)
def chord_whose_body_inherits_the_priority(k):
    return chord([k.member(i).set(priority=2) for i in (1, 2)], k.note()).apply_async()


@scenario(
    *("member(1, how='retry')", "member(1, how='retry')", "member(2)", "note([2, 3])"),
    result=[2, 3],
    has_chord=True,
)
def chord_with_a_retried_member(k):
    return chord([k.member(1, how="retry"), k.member(2)], k.note()).apply_async()


@scenario(
    *("member(1)", "member(-9)", "member(3)", "sent_errback(the result)"),
    result=chord_failed(),
    has_chord=True,
)
def chord_with_a_failing_member(k):
    body = k.step().on_error(k.sent_errback())
    return chord([k.member(1), k.member(-9), k.member(3)], body).apply_async()


@scenario(
    *("step(1)", "member(-9)", "called_errback(the result)", "note('from an errback')"),
    result=chord_failed(),
    has_chord=True,
)
def chord_with_a_failing_member_and_an_errback_with_the_exception(k):
    return chord([k.step(1), k.member(-9)], k.member().on_error(k.called_errback())).apply_async()


@scenario(
    "step(1)", "member([2], -9)", "sent_errback(member([2], -9))", result=FAILED, has_chord=True
)
def chord_whose_body_fails(k):
    return chord([k.step(1)], k.member(-9).on_error(k.sent_errback())).apply_async()


# --- one in another


@scenario(
    *("member(1)", "step(2)", "member(3)", "member(4)", "member(5)", "note([4, 5, 6])"),
    result=[4, 5, 6],
    has_chord=True,
)
def chains_in_a_chord(k):
    return chord(
        [chain(k.member(1), k.step(), k.member()), k.member(4), k.member(5)], k.note()
    ).apply_async()


@scenario("member(-9)", "member(4)", result=chord_failed(UNKNOWN), has_chord=True)
def failing_chain_in_a_chord(k):
    return chord([chain(k.member(-9), k.step()), k.member(4)], k.note()).apply_async()


@scenario(
    *("member(1)", "member(2, 1)", "member(2, 2)", "step(2, 3)", "member([4, 5, 6])", "step(16)"),
    result=17,
    has_chord=True,
)
def group_in_a_chain(k):
    parts = group(k.member(1), k.member(2), k.step(3))
    return chain(k.member(1), parts, k.member(), k.step()).apply_async()


@scenario("member(1)", "member(2, 1)", "step(2, 2)", result=[4, 5])
def group_at_the_end_of_a_chain(k):
    return chain(k.member(1), group(k.member(1), k.step(2))).apply_async()


@scenario(
    *("member(1)", "member(2, 1)", "step(2, 2)", "member([4, 5])", "step(10)"),
    result=11,
    has_chord=True,
)
def chord_in_a_chain(k):
    middle = chord([k.member(1), k.step(2)], k.member())
    return chain(k.member(1), middle, k.step()).apply_async()


@scenario(
    "member(1)",
    "member(2, -11)",
    "step(2, 2)",
    result=chord_failed("member(2, -11)"),
    has_chord=True,
    # Releases without it do not tell the last step, and raise in the task or the body.
    kinds=TWINS if hasattr(Backend, "_fail_chain") else [],
)
def failing_chord_in_a_chain(k):
    middle = chord([k.member(-11), k.step(2)], k.member())
    return chain(k.member(1), middle, k.step()).apply_async()


@scenario(
    *("member(1)", "member(2)", "step([2, 3])", "member(4)", "member([6, 5])"),
    result=12,
    has_chord=True,
)
def chord_in_a_chord(k):
    inner = chord([k.member(1), k.member(2)], k.step())
    return chord([inner, k.member(4)], k.member()).apply_async()


# --- chords whose members share batches


def alone(*runs: str, result: Any, has_chord: bool = True) -> Callable[..., Any]:
    return scenario(*runs, result=result, has_chord=has_chord, kinds=["shared"])


@alone("member(1)", "member(2)", "member(3)", "step([2, 3, 4])", result=10)
def first_chord(k):
    return chord([k.member(1), k.member(2), k.member(3)], k.step()).apply_async()


@alone("member(4)", "member(5)", "member(6)", "note([5, 6, 7])", result=[5, 6, 7])
def second_chord(k):
    return chord([k.member(4), k.member(5), k.member(6)], k.note()).apply_async()


@alone("member(1)", "member(-9)", "member(3)", "sent_errback(the result)", result=chord_failed())
def failing_chord(k):
    body = k.step().on_error(k.sent_errback())
    return chord([k.member(1), k.member(-9), k.member(3)], body).apply_async()


@alone("member(1)", "member(2)", "member(3)", "note([2, 3, 4])", result=[2, 3, 4])
def chord_next_to_a_failing_one(k):
    body = k.note().on_error(k.sent_errback())
    return chord([k.member(1), k.member(2), k.member(3)], body).apply_async()


# --- requests of which the body does not say how they ended, all in one batch


def forgotten(*runs: str, result: Any = PENDING) -> Callable[..., Any]:
    return scenario(*runs, result=result, kinds=["forgetful"])


@forgotten("member(1, how='forget')")
def forgotten_links(k):
    call = k.member(1, how="forget")
    return call.apply_async(link=k.note(), link_error=[k.sent_errback(), k.called_errback()])


@forgotten("member(1, how='forget')")
def forgotten_step_of_a_chain(k):
    return chain(k.member(1, how="forget"), k.step(), k.step()).apply_async()


@forgotten("member(1, how='forget')", "step(2)")
def forgotten_member_of_a_chord(k):
    return chord([k.member(1, how="forget"), k.step(2)], k.note()).apply_async()


@forgotten("member(1, how='forget')")
def forgotten_call_that_nobody_waits_for(k):
    return k.member(1, how="forget").apply_async(link_error=k.sent_errback())


# Celery 5.7 records it as a failure, and others do not.
@forgotten("member(1, how='reject')", result=ANY)
def rejected_call(k):
    return k.member(1, how="reject").apply_async(link=k.note())


@forgotten("member(1)", "note(2)", result=2)
def neighbour_of_the_forgotten(k):
    return k.sends(1, link=k.note())


# --- a link and an errback that cannot be sent, and their neighbours in the batch


def neighbours(*runs: str, result: Any) -> Callable[..., Any]:
    return scenario(*runs, result=result, kinds=["four_by_idiom", "four_marks"])


@neighbours("member(-9)", result=FAILED)
def errback_that_cannot_be_sent(k):
    return k.sends(-9, link_error=k.misfit())


@neighbours("member(1)", result=("TypeError", ANY))
def link_that_cannot_be_sent(k):
    return k.sends(1, link=k.misfit())


@neighbours("member(1)", "note(2)", result=2)
def neighbour_that_is_done(k):
    return k.sends(1, link=k.note(), link_error=k.sent_errback())


@neighbours("member(-9)", "sent_errback(member(-9))", result=FAILED)
def neighbour_that_fails(k):
    return k.sends(-9, link=k.note(), link_error=k.sent_errback())


# --- stamps


def stamped(signature: Any) -> Any:
    signature.stamp(colour="red")
    return signature.apply_async()


@scenario("member(1)", "note(2)", "step(2)", "step(3)", result=2)
def stamped_links(k):
    signature = k.member(1)
    signature.link(k.note())
    signature.link(chain(k.step(), k.step()))
    return stamped(signature)


@scenario("member(-9)", *CALLED, "sent_errback(member(-9))", result=FAILED)
def stamped_errbacks(k):
    signature = k.member(-9)
    signature.link_error(k.sent_errback())
    signature.link_error(k.called_errback())
    return stamped(signature)


@scenario("member(1)", "member(2)", "step(3)", result=4)
def stamped_chain(k):
    return stamped(chain(k.member(1), k.member(), k.step()))


@scenario("member(1)", "member(2)", "member([2, 3])", result=6, has_chord=True)
def stamped_chord(k):
    return stamped(chord([k.member(1), k.member(2)], k.member()))


@scenario("member(1)", "note(2)", result=2)
def stamps_of_the_call_alone(k):
    return k.sends(1, link=k.note(), colour="red", stamped_headers=["colour"])


# --- what was seen


@dataclass
class Seen:
    """What came of a scenario, without anything that differs each time."""

    runs: list[str] = field(default_factory=list)
    result: Any = None
    #: What each run knew of its call, and what errbacks were told.
    details: list[str] = field(default_factory=list)
    #: What the result backend has of the calls and of what they set off.
    tree: Any = None


@dataclass
class Observer:
    """Turns the reports of one scenario, and its result, into what can be compared."""

    reports: list[dict[str, Any]]
    outcome: Any
    scenario: Scenario
    has_tree: bool

    def see(self) -> Seen:
        ran = [report for report in self.reports if report["event"] in ("ran", "called")]
        told = [report for report in self.reports if report["event"] == "told"]
        runs = sorted(map(self.name_of_run, ran))
        # What was lost on its way will not have a result: there is no need to wait for that.
        timeout = 10 if runs == self.scenario.runs else 0.1
        return Seen(
            runs,
            self.result(self.outcome, timeout),
            [
                *sorted(f"{self.name_of_run(run)}: {self.details(run)}" for run in ran),
                *(f"{self.named(report['exc'])}, traced: {report['traced']}" for report in told),
            ],
            self.tree(self.outcome) if self.has_tree else None,
        )

    def name_of_run(self, report: dict[str, Any]) -> str:
        if report["event"] == "called":
            return f"{report['role']}({self.name_of(report['id'])})"
        arguments = [repr(argument) for argument in report["args"]]
        if how := report.get("how"):
            arguments.append(f"how={how!r}")
        return self.named(f"{report['role']}({', '.join(arguments)})")

    def named(self, text: str) -> str:
        """Replace each id by the name of the task."""
        return re.sub(r"'?([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})'?", self._name, text)

    def _name(self, found: re.Match[str]) -> str:
        return self.name_of(found[1])

    def name_of(self, task_id: str | None) -> str | None:
        for report in self.reports:
            if report["event"] == "ran" and report["id"] == task_id:
                return self.name_of_run(report)
        if task_id == self.outcome.id:
            return "the result"
        return None if task_id is None else UNKNOWN

    def details(self, report: dict[str, Any]) -> dict[str, Any]:
        origin = {key: self.name_of(report[key]) for key in ("root_id", "parent_id")}
        if self.scenario.has_chord:
            # The body of a chord comes from whichever member of it was the last.
            origin = {key: name and name != UNKNOWN for key, name in origin.items()}
        same = ("group_index", "retries", "stamps", "stamped_headers")
        return {
            **origin,
            **{key: report[key] for key in same},
            **{key: len(report[key] or ()) for key in ("callbacks", "errbacks", "chain")},
            **{key: report[key] is not None for key in ("group", "chord")},
            "priority": (report["delivery_info"] or {}).get("priority"),
        }

    def result(self, outcome: Any, timeout: float) -> Any:
        if self.scenario.result == PENDING:
            return outcome.state
        try:
            return outcome.get(timeout=timeout)
        except Exception as exc:
            own = exc
            if self.scenario.has_chord:
                # That is the error of the first of its parents that has one: here is its own.
                own = outcome.result
            return type(own).__name__, self.named(str(own))

    def tree(self, outcome: Any) -> Any:
        if isinstance(outcome, GroupResult):
            return [self.tree(part) for part in outcome]
        return {
            "of": self.name_of(outcome.id),
            "state": outcome.state,
            "result": self.named(repr(outcome.result)),
            # Whether the error of a chord has one depends on which of its members was the last.
            "traced": self.scenario.has_chord or outcome.traceback is not None,
            "parent": outcome.parent and self.tree(outcome.parent),
            "children": [self.tree(child) for child in outcome.children or ()],
        }


@dataclass
class Stage:
    """A worker at play."""

    site: Deployment
    worker: Worker

    def finish(self) -> None:
        """Wait until all that was sent has run, and all that this has sent, and so on.

        Then whatever is still to come will never come: the worker takes its messages in order, and
        it is at a message that was sent after the last of the others was done with all it had to
        do.
        """
        reports = self.site.reports
        received, markers = -1, 0
        while received != len(reports.of("received")):
            reports.wait(all_is_over, 1, what="moments in which all is over")
            received = len(reports.of("received")) + 1
            self.site.module.marker.delay()
            markers += 1
            reports.wait(count_markers, markers, what="markers")


def all_is_over(items: list[dict[str, Any]]) -> int:
    members = {item["batch"]: item["members"] for item in items if item["event"] == "body"}
    received = Counter(item["id"] for item in items if item["event"] == "received")
    for item in items:
        if item["event"] == "over":
            received.subtract(members.get(item["id"], [item["id"]]))
    return int(not any(received.values()))


def count_markers(items: list[dict[str, Any]]) -> int:
    return sum(item["event"] == "received" and item["name"].endswith(".marker") for item in items)


@contextmanager
def stage(directory: Path, broker: str, backend: str, pool: str, **config: Any) -> Iterator[Stage]:
    reports = Reports()
    options = {
        **options_for(broker, backend, f"test-{uuid()}"),
        "task_inherit_parent_priority": True,
        "result_extended": True,
        **config,
    }
    if broker.startswith("amqp"):
        # Without it, messages from two connections may change places on their way.
        options["broker_transport_options"] = {"confirm_publish": True}
    site = Deployment("canvas_app", directory, options, reports)
    try:
        with site.worker(pool, concurrency=3) as worker:
            yield Stage(site, worker)
    finally:
        site.close()
        reports.close()


def play(on: Stage, names: Iterable[str], *, has_tree: bool) -> dict[tuple[str, str], Seen]:
    """Play these scenarios, each with all of its tasks, all at once."""
    calls = {}
    for name in names:
        for kind in SCENARIOS[name].kinds:
            calls[name, kind] = SCENARIOS[name].play(Kit(on.site, kind, f"{name}/{kind}"))
    on.finish()
    return {
        (name, kind): Observer(
            [report for report in on.site.reports.items if report.get("tag") == f"{name}/{kind}"],
            outcome,
            SCENARIOS[name],
            has_tree,
        ).see()
        for (name, kind), outcome in calls.items()
    }


@dataclass
class Played:
    """What came of every scenario, by its name and the task, and what the worker said."""

    seen: dict[tuple[str, str], Seen]
    bodies: list[dict[str, Any]]
    log: list[str]
    problems: list[str]


REDIS, RABBITMQ = pytest.mark.redis, pytest.mark.rabbitmq


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("redis", "prefork"), marks=REDIS, id="redis-prefork"),
        pytest.param(("redis", "threads"), marks=REDIS, id="redis-threads"),
        pytest.param(("rabbitmq", "prefork"), marks=[REDIS, RABBITMQ], id="rabbitmq-prefork"),
        pytest.param(("rabbitmq", "threads"), marks=[REDIS, RABBITMQ], id="rabbitmq-threads"),
    ],
)
def played(request, redis_url, tmp_path_factory):
    """A worker with this broker and pool, and its results in Redis, has played all scenarios."""
    broker, pool = request.param
    broker_url = request.getfixturevalue(f"{broker}_url")
    with stage(tmp_path_factory.mktemp("canvas"), broker_url, redis_url, pool) as on:
        seen = play(on, SCENARIOS, has_tree=True)
        return Played(seen, on.site.reports.of("body"), on.worker.log.items, on.worker.problems)


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_continuation_runs_exactly_once(name, played):
    for kind in SCENARIOS[name].kinds:
        assert (kind, played.seen[name, kind].runs) == (kind, SCENARIOS[name].runs)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_caller_gets_what_came_of_it(name, played):
    for kind in SCENARIOS[name].kinds:
        assert (kind, played.seen[name, kind].result) == (kind, SCENARIOS[name].result)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if SCENARIOS[name].kinds == TWINS])
def test_all_is_as_for_an_ordinary_task(name, played):
    plain = played.seen[name, "plain"]
    for kind in KINDS:
        assert (kind, played.seen[name, kind].details) == (kind, plain.details)
        assert (kind, played.seen[name, kind].tree) == (kind, plain.tree)


def sizes(played, name):
    return [len(body["members"]) for body in played.bodies if body["name"] == f"canvas_app.{name}"]


def test_the_batches_are_those_that_the_scenarios_speak_of(played):
    for kind in KINDS:  # Each chord of ten is in several, and calls of many scenarios are in one.
        assert max(sizes(played, kind)) == 3
    assert sizes(played, "shared") == [6, 6]
    assert sizes(played, "four_by_idiom") == sizes(played, "four_marks") == [4]


def test_one_warning_tells_of_links_chains_and_chords_that_do_not_go_on(played):
    assert sizes(played, "forgetful") == [6]
    (line,) = [line for line in played.log if "a link, chain or chord waits for" in line]
    assert ": WARNING/" in line
    assert "waits for 3 of its requests" in line


def test_the_log_has_no_errors_but_those_of_the_bodies(played):
    expected = re.compile(r"less than nothing|misfit\(\)")
    assert [line for line in played.problems if not expected.search(line)] == []


@pytest.mark.parametrize(
    ("broker", "pool"),
    [
        pytest.param("redis", "threads", marks=REDIS),
        pytest.param("rabbitmq", "prefork", marks=RABBITMQ),
    ],
)
def test_links_chains_and_groups_with_results_by_rpc(broker, pool, request, tmp_path):
    broker_url = request.getfixturevalue(f"{broker}_url")
    names = [
        *("several_links", "link_to_a_group", "link_of_a_retried_call"),
        *("errback_with_the_task_id", "errback_with_the_exception"),
        *("chain_with_a_member_in_the_middle", "chain_of_members_with_links"),
        *("chain_whose_first_step_fails", "group_of_members", "group_with_a_failing_member"),
    ]
    with stage(tmp_path, broker_url, "rpc://", pool) as on:
        seen = play(on, names, has_tree=False)
    check(seen)


@pytest.mark.redis
def test_chords_with_results_in_a_database(redis_url, tmp_path):
    """There, it is a task that looks again and again whether all members are done."""
    chords = ["chord_of_several_batches", "chord_with_a_failing_member", "chains_in_a_chord"]
    names = [*chords, "chain_whose_first_step_fails"]
    url = f"db+sqlite:///{tmp_path}/results.sqlite"
    with stage(tmp_path, redis_url, url, "prefork", result_chord_retry_interval=0.1) as on:
        seen = play(on, names, has_tree=True)
    check(seen, chord_with_a_failing_member=("ChordError", "ValueError('less than nothing')"))


def check(seen: dict[tuple[str, str], Seen], **results: Any) -> None:
    """Check what the other tests do, with these results where they are not those of Redis."""
    for case, what in seen.items():
        name, kind = case
        assert (case, what.runs) == (case, SCENARIOS[name].runs)
        assert (case, what.result) == (case, results.get(name, SCENARIOS[name].result))
        if kind in KINDS:
            assert (case, what.details) == (case, seen[name, "plain"].details)
            assert (case, what.tree) == (case, seen[name, "plain"].tree)
