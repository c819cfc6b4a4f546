"""What a body sees of one call."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery.app.task import Context
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_batches import Batches, SimpleRequest
from celery_batches.core.slot import OutcomeSlot
from kit.messages import hybrid, make_message, protocol_1, protocol_2
from kit.requests import HOSTNAME, task_context, worker_request

TEN = (
    "id",
    "name",
    "args",
    "kwargs",
    "delivery_info",
    "hostname",
    "ignore_result",
    "reply_to",
    "correlation_id",
    "request_dict",
)

#: What there is to know of a task, in Celery's words.
CONTEXT_NAMES = sorted(
    name
    for name, value in vars(Context).items()
    if not name.startswith("_")
    and not callable(value)
    and name not in {"execution_options", "children"}
)


class OwnRequest(SimpleRequest):
    """A user's subclass."""

    colour = "red"


@pytest.fixture
def task(app: Any) -> Any:
    @app.task(base=Batches, name="unit.click")
    def click(requests: Any) -> None: ...

    return click


def assert_same_context(simple: Any, context: Any) -> None:
    names = [*CONTEXT_NAMES, *(n for n in vars(context) if not n.startswith("_"))]
    different = {
        name: (getattr(simple, name, "(missing)"), getattr(context, name))
        for name in dict.fromkeys(names)
        if getattr(simple, name, "(missing)") != getattr(context, name)
    }
    assert different == {}


def round_trip(value: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> Any:
    return pickle.loads(pickle.dumps(value, protocol))


def test_six_arguments_of_0_1() -> None:
    """The six positional arguments that it has always had are enough."""
    request = SimpleRequest("1", "click", ["a"], {"b": 2}, {"exchange": "x"}, "w@h")
    assert [getattr(request, name) for name in TEN[:6]] == [
        *("1", "click", ["a"], {"b": 2}, {"exchange": "x"}, "w@h")
    ]
    assert request.ignore_result is False
    assert request.reply_to is None
    assert request.correlation_id is None
    assert not request.request_dict


def test_ten_arguments_of_0_11() -> None:
    """The ten positional arguments of the latest release are in the order that it documents."""
    values = ("1", "click", ["a"], {"b": 2}, {}, "w@h", True, "reply", "corr", {"id": "1"})
    request = SimpleRequest(*values)
    assert tuple(getattr(request, name) for name in TEN) == values


def test_ten_arguments_by_name() -> None:
    """Each argument can be given by its name."""
    values = ("1", "click", ["a"], {"b": 2}, {}, "w@h", True, "reply", "corr", {"id": "1"})
    request = SimpleRequest(**dict(zip(TEN, values, strict=True)))
    assert tuple(getattr(request, name) for name in TEN) == values


FULL = {
    "group_id": "group-id",
    "group_index": 3,
    "retries": 2,
    "root_id": "root",
    "parent_id": "parent",
    "time_limit": 20,
    "soft_time_limit": 10,
    "shadow": "nick",
    "origin": "gen1@h",
    "expires": 3600,
    "countdown": 60,
    "ignore_result": True,
    "replaced_task_nesting": 2,
    "stamped_headers": ["tenant"],
    "tenant": ["t1"],
    "reply_to": "reply-queue",
    "headers": {"x-custom": "yes"},
}


@pytest.mark.parametrize("amqp", [False, True])
@pytest.mark.parametrize("more", [{}, FULL], ids=["plain", "full"])
def test_protocol_2_carries_the_whole_context(
    app: Any, task: Any, more: dict[str, Any], amqp: bool
) -> None:
    """Each attribute of task.request in an ordinary task is on the request of a batch, equal."""
    embed = {
        "callbacks": [task.s(1)],
        "errbacks": [task.s(2)],
        "chord": task.s(3),
        "chain": [task.s(4)],
    }
    message = protocol_2(
        *(app, "id-1", task.name, ["a", 1], {"k": [1]}),
        amqp=amqp,
        **more,
        **(embed if more else {}),
    )
    request = worker_request(app, task, message)
    simple = SimpleRequest.from_request(request)
    assert_same_context(simple, task_context(request))
    assert_same_context(round_trip(simple), task_context(request))
    assert (simple.id, simple.hostname) == ("id-1", HOSTNAME)
    assert (list(simple.args), simple.kwargs) == (["a", 1], {"k": [1]})
    assert simple.name == more.get("shadow", task.name)
    assert simple.ignore_result is bool(more)
    if more:
        assert simple.root_id == "root"
        assert simple.group == "group-id"
        assert simple.group_index == 3
        assert simple.retries == 2
        assert simple.stamps == {"tenant": ["t1"]}
        assert simple.chord["task"] == simple.chain[0]["task"] == task.name
        assert simple.callbacks[0]["args"] == [1]
        assert simple.errbacks[0]["args"] == [2]


@pytest.mark.parametrize("make", [protocol_1, hybrid])
def test_old_protocols_carry_the_whole_context(app: Any, task: Any, make: Any) -> None:
    """Messages of protocol 1 and hybrids give a body as much context as an ordinary task has."""
    message = make(
        *(app, "id-1", task.name, ["a"], {"k": 1}),
        group_id="g",
        retries=1,
        time_limit=5,
        soft_time_limit=4,
        countdown=60,
        callbacks=[task.s(1)],
        errbacks=[task.s(2)],
        chord=task.s(3),
        reply_to="reply",
    )
    request = worker_request(app, task, message)
    simple = SimpleRequest.from_request(request)
    assert_same_context(simple, task_context(request))
    assert_same_context(round_trip(simple), task_context(request))
    assert simple.id == "id-1"
    assert simple.retries == 1
    assert simple.callbacks[0]["args"] == [1]


def test_protocol_1_without_args(app: Any, task: Any) -> None:
    """A call that names no arguments at all (protocol 1 leaves them out) has none."""
    message = make_message({"task": task.name, "id": "1"})
    simple = SimpleRequest.from_request(worker_request(app, task, message))
    assert list(simple.args) == []
    assert simple.kwargs == {}
    assert simple.retries == 0


def test_the_tasks_ignore_result_counts_when_the_call_says_nothing(app: Any) -> None:
    """A call without the header takes ignore_result from its task; a call with it overrules it."""

    @app.task(base=Batches, name="unit.quiet", ignore_result=True)
    def quiet(requests: Any) -> None: ...

    silent = protocol_2(app, "1", quiet.name)
    del silent.headers["ignore_result"]
    loud = protocol_2(app, "1", quiet.name, more_headers={"ignore_result": False})
    assert SimpleRequest.from_request(worker_request(app, quiet, silent)).ignore_result is True
    assert SimpleRequest.from_request(worker_request(app, quiet, loud)).ignore_result is False


def test_redelivered(app: Any, task: Any) -> None:
    """The body can tell that the broker has delivered a call before."""
    for redelivered in (False, True):
        message = protocol_2(app, "1", task.name, redelivered=redelivered)
        simple = SimpleRequest.from_request(worker_request(app, task, message))
        assert simple.redelivered is redelivered
        assert simple.delivery_info["redelivered"] is redelivered


def test_custom_headers(app: Any, task: Any) -> None:
    """A custom header is in `headers` and is an attribute, as on task.request."""
    message = protocol_2(app, "1", task.name, more_headers={"tenant": "t1"})
    simple = SimpleRequest.from_request(worker_request(app, task, message))
    assert simple.headers["tenant"] == "t1"
    assert simple.tenant == "t1"
    assert simple.get("tenant") == "t1"
    assert simple.get("nothing", 5) == 5


def test_an_unknown_attribute_is_an_error() -> None:
    """A misspelt attribute is an AttributeError that names it, not a silent None."""
    request = SimpleRequest("1", "click", [], {}, {}, "h")
    with pytest.raises(AttributeError, match="'parent_ib'"):
        request.parent_ib  # noqa: B018
    assert not hasattr(request, "__length_hint__")


simple_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
known_keys = st.sampled_from(
    ["root_id", "parent_id", "group", "chord", "eta", "lang", "origin", "utc", "headers", "stamps"]
)
header_dicts = st.dictionaries(known_keys | st.text(max_size=6), simple_values, max_size=8)
request_dicts = st.none() | st.builds(
    lambda headers, properties, own: {**headers, **own, **properties},
    header_dicts,
    st.one_of(
        st.just({}),
        st.fixed_dictionaries({"properties": header_dicts}),
        st.builds(
            lambda headers: {"properties": {"application_headers": headers, "priority": 0}},
            header_dicts,
        ),
    ),
    header_dicts,
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(simple_values, max_size=3),
    st.dictionaries(st.text(max_size=5), simple_values, max_size=3),
    request_dicts,
    st.integers(2, pickle.HIGHEST_PROTOCOL),
    st.sampled_from([SimpleRequest, OwnRequest]),
)
def test_pickle_keeps_everything(
    args: list[Any],
    kwargs: dict[str, Any],
    request_dict: dict[str, Any] | None,
    protocol: int,
    cls: type[SimpleRequest],
) -> None:
    """Whatever a call's context holds, the other side of a pickle has the same, and type."""
    request = cls("1", "n", args, kwargs, {"priority": 1}, "h", True, "r", "c", request_dict)
    again = round_trip(request, protocol)
    assert type(again) is cls
    if isinstance((request_dict or {}).get("properties"), dict):
        known = request_dict["properties"].get("application_headers")  # type: ignore[index]
        if known is not None:
            # Only the context that a worker makes holds its headers twice.
            assert set(again.request_dict["properties"]) == set(request_dict["properties"])  # type: ignore[index]
    assert [getattr(again, n) for n in TEN[:-1]] == [getattr(request, n) for n in TEN[:-1]]
    assert {k: v for k, v in (again.request_dict or {}).items() if k != "properties"} == {
        k: v for k, v in (request_dict or {}).items() if k != "properties"
    }


@pytest.mark.parametrize("more", [{}, FULL], ids=["plain", "full"])
def test_pickle_restores_amqp_headers(app: Any, task: Any, more: dict[str, Any]) -> None:
    """The copy of the headers that AMQP keeps in the properties is there again after a pickle."""
    message = protocol_2(
        *(app, "id-1", task.name, ["a"]), amqp=True, more_headers={"tenant": "t1"}, **more
    )
    request = worker_request(app, task, message)
    simple = SimpleRequest.from_request(request)
    again = round_trip(simple)
    assert again.request_dict == simple.request_dict
    assert again.properties["application_headers"] == message.headers
    assert again.properties["application_headers"]["tenant"] == "t1"


def test_pickling_does_not_change_the_original(app: Any, task: Any) -> None:
    """Sending a request to the pool leaves the worker's own copy of its context alone."""
    message = protocol_2(app, "id-1", task.name, ["a"], amqp=True)
    simple = SimpleRequest.from_request(worker_request(app, task, message))
    headers = dict(message.headers)
    pickle.dumps(simple)
    assert message.headers == headers
    assert simple.properties["application_headers"] == headers


def test_what_the_run_has_noted_is_not_pickled() -> None:
    """A body may send its requests anywhere, and what runs it stays where it is."""
    request = SimpleRequest("1", "click", [], {}, {}, "h")
    request.outcome_slot = OutcomeSlot(lambda: "no pickle can hold this")
    request.mark_as_done(1)
    again = round_trip(request)
    assert again.outcome_slot is None
    assert vars(again) == {name: getattr(request, name) for name in TEN}


def test_extra_attributes_survive_a_pickle() -> None:
    """What a user has put on a request crosses with it."""
    request = OwnRequest("1", "click", [], {}, {}, "h")
    request.note = "mine"  # type: ignore[attr-defined]
    again = round_trip(request)
    assert type(again) is OwnRequest
    assert again.note == "mine"
    assert again.colour == "red"


def _old_pickle(state: dict[str, Any]) -> bytes:
    """What pickle's protocol 2 wrote of the class that older releases had in the package itself."""
    state_alone = pickle.dumps(state, 2)[2:-1]
    return b"\x80\x02ccelery_batches\nSimpleRequest\n)\x81" + state_alone + b"b."


@pytest.mark.parametrize("count", [6, 9, 10])
def test_a_pickle_of_an_older_release_loads(count: int) -> None:
    """A pickle made by 0.11, or by 0.1, loads here, and all attributes exist."""
    values = ("1", "click", ["a"], {"b": 2}, {}, "w@h", True, "reply", "corr", {"root_id": "r"})
    state = dict(zip(TEN[:count], values, strict=False))
    request = pickle.loads(_old_pickle(state))
    assert type(request) is SimpleRequest
    for name, value in state.items():
        assert getattr(request, name) == value
    for name in (*TEN, *CONTEXT_NAMES):
        getattr(request, name)
    assert request.root_id == ("r" if count == 10 else None)
    assert round_trip(request).id == "1"


def test_a_bare_instance_is_harmless() -> None:
    """An instance without any state can be looked at and copied without endless recursion."""
    request = SimpleRequest.__new__(SimpleRequest)
    assert request.id is None
    assert request.chord is None
    assert request.headers is None
    assert "SimpleRequest" in repr(request)
    assert round_trip(request).request_dict is None


def test_repr_tells_which_call_it_is() -> None:
    """The representation has the name, the id and the arguments of the call."""
    request = SimpleRequest("id-1", "click", ["a"], {"b": 2}, {}, "h")
    for part in ("click", "id-1", "'a'", "'b'", "2"):
        assert part in repr(request)


class Endless:
    def __repr__(self) -> str:
        return "x" * 1_000_000


@pytest.mark.parametrize(
    "hostile",
    ["x" * 1_000_000, list(range(100_000)), {i: i for i in range(10_000)}, Endless(), 10**5000],
    ids=["text", "list", "dict", "repr", "int"],
)
def test_repr_of_hostile_arguments_is_short(hostile: Any) -> None:
    """No argument, however large, floods a log by way of a request's representation."""
    request = SimpleRequest("id-1", "click", [hostile], {"k": hostile}, {}, "h")
    assert len(repr(request)) < 1000
