"""Every step from the return of the body to the acknowledgement, and what is lost there. Pure.

A case is one point of one step, one way to lose something there, one mode of acknowledgement, and
what else matters: how the calls go on, the broker, the result backend, and two settings. Their
product has some 30,000 cases. This takes each possible triple of point, way and acknowledgement
once. The rest is dealt out in turn: of what is possible for a triple, it gets what its way and
acknowledgement have had least.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

#: How many calls are one batch here.
SIZE = 4

#: How calls go on and end. All but ``plain`` and ``chord`` also have a ``link_error``. ``fail`` has
#: two variants: with none, and with one that is called where the call has failed.
MODES = ("plain", "link", "chain", "chord", "fail", "retry")
#: In which modes nothing is published.
SILENT = ("plain", "fail here", "fail alone")
#: What is published when a call ends.
PUBLISHED = {"link": "link", "chain": "next", "fail": "errback", "retry": "retry"}
DONE = ("plain", "link", "chain", "chord")

ACKS = ("early", "late", "reject")


@dataclass(frozen=True, slots=True)
class Config:
    """How a worker is configured."""

    broker: str
    backend: str
    #: ``worker_deduplicate_successful_tasks``.
    dedup: bool
    #: Whether shortcuts are on: states are stored, and messages acknowledged, together.
    bulk: bool

    def __str__(self) -> str:
        options = [self.broker, self.backend]
        options += ["dedup"] * self.dedup + ["one by one"] * (not self.bulk)
        return ", ".join(options)


#: With these, the worker cannot look up a result: it is in the queue of the caller, or ignored.
#: Celery has no chords with them, and this package no bulk results.
UNSTORED = ("rpc", "ignored")

CONFIGS = tuple(
    Config(broker, backend, dedup, bulk)
    for backend in ("redis", "database", *UNSTORED)
    for broker in ("rabbitmq", "redis")
    for dedup in (False, True)
    for bulk in (True, False)
    if backend not in UNSTORED or not dedup
)

#: Those of `few_cases`. Each worker takes seconds to start.
FEW_CONFIGS = (
    Config("rabbitmq", "redis", dedup=False, bulk=True),
    Config("redis", "redis", dedup=True, bulk=False),
    Config("redis", "database", dedup=False, bulk=True),
    Config("rabbitmq", "ignored", dedup=False, bulk=True),
)

#: A mode and a configuration.
Rest: TypeAlias = tuple[str, Config]


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a batch.

    Attributes:
        name: Its name.
        modes: In which modes calls come there.
        nth: Of which calls of the batch it is looked at.
        both: Whether it has a before and an after. Otherwise it is one point.
        main: Whether it is in the main process.
        bulk: Whether it is there only with (``True``) or without (``False``) shortcuts.
        backends: With which backends it is there.
        acks: With which acknowledgement it is there, before the batch has ended.
        plain: The same step of an ordinary task, if it has another name.
    """

    name: str
    modes: tuple[str, ...] = MODES
    nth: tuple[int, ...] = (2,)
    both: bool = True
    main: bool = False
    bulk: bool | None = None
    backends: tuple[str, ...] = ("redis", "database", *UNSTORED)
    acks: tuple[str, ...] = ACKS
    plain: str = ""

    @property
    def points(self) -> list[str]:
        return [f"{self.name}: before", f"{self.name}: after"] if self.both else [self.name]


KEEPS = ("redis", "database")
STEPS = (
    Step("body returned", nth=(1,), both=False),
    Step(
        "states stored together",
        ("plain", "fail alone"),
        nth=(1,),
        bulk=True,
        backends=KEEPS,
        plain="state stored",
    ),
    Step("link published", ("link",)),
    Step("next published", ("chain",)),
    Step("state stored", bulk=False, backends=(*KEEPS, "rpc")),
    Step("chord part counted", ("chord",), nth=(2, SIZE), backends=KEEPS),
    # However a version of this package does it: a state, or a chord part.
    Step("written to Redis", ("chord",), nth=(1, 2, 3), backends=("redis",)),
    # With a database, a task of Celery's waits for the parts, and calls back.
    Step("callback published", ("chord",), nth=(1,), backends=("redis",)),
    Step("errback published", ("fail",)),
    Step("errback called", ("fail here",)),
    Step("on_success", DONE, both=False),
    Step("on_failure", ("fail",), both=False),
    Step("retry published", ("retry",)),
    Step("on_retry", ("retry",), both=False),
    Step("after_return", (*DONE, "fail"), both=False),
    Step("task_failure", ("fail",), both=False),
    Step("task_retry", ("retry",), both=False),
    Step("task_success", DONE, nth=(1,), both=False),
    Step("task_postrun", nth=(1,), both=False),
    Step("report sent", nth=(1,)),
    Step("report read", nth=(1,), both=False, main=True),
    Step("request notified", nth=(1, SIZE), main=True),
    Step("event sent", nth=(1, SIZE), main=True),
    Step("ack written", nth=(1, SIZE), main=True, bulk=False, acks=("late", "reject")),
    Step(
        "acks written together",
        nth=(1,),
        main=True,
        bulk=True,
        acks=("late", "reject"),
        plain="ack written",
    ),
)

#: What is lost, and which steps it is lost at.
WAYS = ("process killed", "worker killed", "broker cut", "backend away")


@dataclass(frozen=True, slots=True)
class Case:
    """One loss at one point."""

    point: str
    nth: int
    way: str
    acks: str
    mode: str
    config: Config
    #: ``batch``, or ``plain`` for an ordinary task.
    kind: str = "batch"
    plain_point: str = ""

    @property
    def calls(self) -> int:
        return SIZE if self.kind == "batch" or self.mode == "chord" else 1

    @property
    def id(self) -> str:
        at = f"{self.point} {self.nth}" if self.nth > 1 else self.point
        return f"{at} | {self.way} | {self.acks} | {self.mode} | {self.config}"

    def control(self) -> "Case":
        """Return the same for an ordinary task."""
        # Of a chord it is the last part that makes a difference.
        nth = SIZE if self.mode == "chord" and self.nth == SIZE else 1
        if self.point.startswith("written"):
            # An ordinary task writes its state, and then its part. With shortcuts, both are one.
            is_part = self.point.endswith("after") if self.config.bulk else self.nth % 2 == 0
            nth = 2 if is_part else 1
        return replace(
            self,
            kind="plain",
            point=self.plain_point,
            nth=nth,
        )

    def neighbours(self) -> list["Case"]:
        """Return further losses of an ordinary task: where other calls of the batch are then."""
        # The first of them has no look-up, and the second has.
        config = FEW_CONFIGS[self.config.dedup and self.acks != "early"]
        if self.config.backend in UNSTORED:
            config = self.config
        control = replace(self.control(), nth=1, config=config)
        found = [replace(control, point="body returned", mode="plain")]
        published = PUBLISHED.get(self.mode)
        if published is not None and self.way != "backend away":
            found.append(replace(control, point=f"{published} published: after"))
        return found


def ways_at(step: Step) -> tuple[str, ...]:
    # The main process does not use the result backend once the body has returned.
    return WAYS[:-1] if step.main else WAYS


def triples() -> Iterator[tuple[Step, str, str, int, str]]:
    """Yield each possible triple of point, way and acknowledgement."""
    for step in STEPS:
        for point in step.points:
            for nth in step.nth:
                for way in ways_at(step):
                    for acks in step.acks:
                        yield step, point, way, nth, acks


def allowed(step: Step, way: str, configs: Sequence[Config]) -> list[Rest]:
    """Return in which modes and configurations this can be lost at this step."""
    found = []
    for config in configs:
        if step.bulk not in (None, config.bulk) or config.backend not in step.backends:
            continue
        if way == "backend away" and config.backend != "redis":
            continue  # A file does not go away, and `rpc` is the broker.
        # Redis loses what a worker is just taking from it, of any task. In the main process one
        # cannot wait until nothing is.
        in_transit = (
            step.main and config.broker == "redis" and way in ("worker killed", "broker cut")
        )
        found += [
            (mode, config)
            for mode in step.modes
            if not (mode == "chord" and config.backend in UNSTORED)
            and not (in_transit and mode not in SILENT)
        ]
    return found


def all_cases(configs: Sequence[Config] = CONFIGS) -> list[Case]:
    """Return the cases, each of a batch, with these configurations."""
    had: Counter[object] = Counter()
    cases = []
    for step, point, way, nth, acks in triples():
        options = allowed(step, way, configs)
        if options:
            rest = min(options, key=partial(_had, had, way, acks))
            had.update([rest, *_axes(way, acks, rest)])
            plain = point.replace(step.name, step.plain) if step.plain else point
            cases.append(Case(point, nth, way, acks, *rest, plain_point=plain))
    return cases


def _had(had: Counter[object], way: str, acks: str, rest: Rest) -> tuple[int, int]:
    return sum(had[axis] for axis in _axes(way, acks, rest)), had[rest]


def _axes(way: str, acks: str, rest: Rest) -> list[object]:
    mode, config = rest
    values = (mode, config.broker, config.backend, config.dedup, config.bulk)
    return [(way, acks, axis, value) for axis, value in enumerate(values)]


def few_cases() -> list[Case]:
    """Return some of the cases, with few configurations: for every run of the tests."""
    # A prime number, so that they are not all of one way or acknowledgement.
    return all_cases(FEW_CONFIGS)[2::19]
