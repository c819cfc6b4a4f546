"""Messages that are no calls, one for each thing that can be wrong with one.

Each is made from a call that is in order, so that just the one thing is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from pickle import dumps as pickled
from typing import Any

__all__ = ("NONSENSE", "PROTOCOLS", "Sent", "call", "nested", "nonsense")

PROTOCOLS = ("1", "2", "hybrid")


@dataclass
class Sent:
    """A message as a client sends it: all that is under its control."""

    headers: dict[str, Any]
    body: bytes
    properties: dict[str, Any] = field(default_factory=dict)
    content_type: Any = "application/json"
    content_encoding: Any = "utf-8"


def call(task: str, task_id: str, args: Any = (), protocol: str = "2", **more: Any) -> Sent:
    """A call in order; ``more`` are headers, or with protocol 1 what takes their place."""
    facts = {"lang": "py", "task": task, "id": task_id, "root_id": task_id, "retries": 0}
    facts.update({"eta": None, "expires": None, "timelimit": [None, None], **more})
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    properties = {"correlation_id": task_id, "reply_to": "nobody"}
    if protocol == "2":
        return Sent(facts, json.dumps([list(args), {}, embed]).encode(), properties)
    body = {**facts, **embed, "args": list(args), "kwargs": {}, "utc": True}
    headers = {} if protocol == "1" else {"lang": "py", "task": task, "id": task_id}
    return Sent(headers, json.dumps(body).encode(), properties)


def nested(depth: int) -> str:
    """That many lists in each other, as JSON."""
    return "[" * depth + "]" * depth


def change(sent: Sent, name: str, value: Any) -> None:
    """Change what Celery reads as a header: with protocol 1, that is in the body."""
    if "task" in sent.headers:
        sent.headers[name] = value
    else:
        payload = json.loads(sent.body)
        payload[name] = value
        sent.body = json.dumps(payload).encode()


def header(name: str, value: Any) -> Callable[[Sent], None]:
    return lambda sent: change(sent, name, value)


def drop(name: str) -> Callable[[Sent], None]:
    def nothing_of_it(sent: Sent) -> None:
        sent.headers.pop(name, None)
        payload = json.loads(sent.body)
        if isinstance(payload, dict):
            payload.pop(name)
            sent.body = json.dumps(payload).encode()

    return nothing_of_it


def body(content: bytes) -> Callable[[Sent], None]:
    return lambda sent: setattr(sent, "body", content)


def says(**attributes: Any) -> Callable[[Sent], None]:
    def lie(sent: Sent) -> None:
        for name, value in attributes.items():
            setattr(sent, name, value)

    return lie


def unknown_without_id(sent: Sent) -> None:
    header("task", "x")(sent)
    drop("id")(sent)


def pickled_body(sent: Sent) -> None:
    sent.body = pickled(json.loads(sent.body))
    sent.content_type, sent.content_encoding = "application/x-python-serialize", "binary"


def yaml_body(sent: Sent) -> None:
    sent.content_type = "application/x-yaml"  # JSON is YAML.


HEADERS: dict[str, list[Any]] = {
    "task": ["no.such.task", "", [], {}, ["a"], "%s{0}"],
    "id": [None, 1.5, True, [], {}, {"a": 1}],
    "shadow": [5, ["a"], {"a": 1}],
    "eta": ["tomorrow", "", 12, 1.5, ["a"], {"a": 1}, True, "9999-12-31T23:59:59-14:00"],
    "expires": ["never", "", 12, 1.5, ["a"], {"a": 1}, "2020-13-01"],
    "retries": ["3", 1.5, -1, ["a"]],
    "timelimit": [
        *(5, "12", [1], [1, 2, 3], ["1", "2"], {"a": 1, "b": 2}, [None, -1], [[], []]),
        *([float("nan"), None], [None, float("inf")]),
    ],
    "stamped_headers": [5, [["a"]], [5], [None]],
    "stamps": ["x", ["x"], 5],
}

BODIES = [
    *(b"", b"null", b"0", b"false", b"42", b'"args"', b'"task"', b"[]", b"{}", b"[[], {}]"),
    *(b"[[], {}, {}, {}]", b"[[], {}, []]", b'[[], {}, "args"]', b"[{}, [], {}]"),
    *(b'["args", {}, {}]', b"[null, {}, {}]", b"[[], null, {}]", b'{"id": "a", "b": 2, "c": 3}'),
    *(b'{"kwargs": {}}', b'{"args": 5}', b'{"args": [], "kwargs": []}', b"{", b"\xff\xfe", b"\x00"),
    *(b"[" * 100_000, b"[[" + b"9" * 5_000 + b"], {}, {}]", b'[[{"__type__": [], "__value__": 1}]'),
]

#: What is wrong -> how to do that to a message. Each is for the worker to refuse.
NONSENSE: dict[str, Callable[[Sent], None]] = {
    **{f"{k} is {v!r}": header(k, v) for k, values in HEADERS.items() for v in values},
    **{f"the body is {content[:40]!r}": body(content) for content in BODIES},
    "no id": drop("id"),
    "no task": drop("task"),
    "an unknown task without an id": unknown_without_id,
    "pickle": pickled_body,
    "yaml": yaml_body,
    "no such content type": says(content_type="x/y"),
    "text": says(content_type="text/plain"),
    "no such encoding": says(content_type="text/plain", content_encoding="no-such"),
    "a codec that is no encoding": says(content_type="text/plain", content_encoding="hex"),
    "pickle that says it is JSON": says(body=pickled([[1], {}, {}])),
    "not compressed": lambda sent: sent.headers.update(compression="application/x-gzip"),
    "no such compression": lambda sent: sent.headers.update(compression="x"),
    "compression is a list": lambda sent: sent.headers.update(compression=["gzip"]),
}


def nonsense(what: str, good: Sent) -> Sent:
    """A copy of a call, with that wrong."""
    bad = copy(good)
    bad.headers, bad.properties = dict(good.headers), dict(good.properties)
    NONSENSE[what](bad)
    return bad
