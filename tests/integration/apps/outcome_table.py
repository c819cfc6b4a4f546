"""What becomes of each request of a batch: the table that the tests make happen.

Each cell of `TABLE` is about a batch of four requests, and has one letter for each of them. The row
is what the body does, the column is the options of the task. `FATES` says what becomes of the
message, by the letter and by the way to acknowledge. The pool makes no difference.

The third request is the odd one: unless a row says something else, it is the one that fails. With
``unique_key`` it has the key of the first one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from celery import VERSION

__all__ = (
    "ACKS",
    "COLUMNS",
    "FATES",
    "LETTERS",
    "ODD",
    "SIZE",
    "WAYS",
    "Item",
    "Poison",
    "Transient",
    "Unlisted",
    "cell",
    "cells_of_turn",
    "fates",
    "letters",
    "result_of",
    "task_options",
)

SIZE, ODD = 4, 2


class Poison(Exception):
    """Raised, and listed in ``bisect_on_failure``."""


class Transient(Exception):
    """Raised, and listed in ``bisect_on_failure`` and ``autoretry_for``."""


class Unlisted(Exception):
    """Raised, and listed nowhere."""


class Item(Exception):
    """An item of what the body returns."""


class Own(Exception):
    """The failure of a request that the body has marked."""


class Letter(NamedTuple):
    """How a request ends: its state in the result backend, and with which of these exceptions."""

    state: str
    errors: tuple[str, ...] = ()
    is_sent_again: bool = False


RAISED = ("Poison", "Transient", "Unlisted")
LETTERS = {
    "D": Letter("SUCCESS"),  # Done: its result is its number, or that of the one that was kept.
    "U": Letter("PENDING"),  # Unmarked.
    "P": Letter("FAILURE", RAISED),  # By what the body has raised.
    "X": Letter("FAILURE", ("Item", "Transient")),  # By its own item.
    "O": Letter("FAILURE", ("Own",)),  # By its own mark.
    "W": Letter("FAILURE", ("TypeError", "ValueError")),  # No list of results.
    "E": Letter("FAILURE", ("EncodeError",)),  # The backend refuses its result.
    "M": Letter("FAILURE", ("MaxRetriesExceededError",)),
    "R": Letter("RETRY", is_sent_again=True),
    "H": Letter("RETRY"),  # `Retry` by hand: nothing is sent.
    "I": Letter("PENDING"),  # Ignored.
    # Rejected. Celery 5.7 and newer store it as a failure, since the task will never run.
    "J": Letter("FAILURE", ("Reject",)) if VERSION >= (5, 7) else Letter("PENDING"),
    "Q": Letter("PENDING"),  # Requeued.
}

BISECT: dict[str, Any] = {"bisect_on_failure": (Poison, Transient)}
BOTH: dict[str, Any] = {"return_results": True, **BISECT}
RETRY: dict[str, Any] = {"autoretry_for": (Transient,)}
LAST: dict[str, Any] = {"unique_key": "key"}
COLUMNS: dict[str, dict[str, Any]] = {
    "none": {},
    "list": {"return_results": True},
    "half": BISECT,
    "both": BOTH,
    "+non": RETRY,
    "+lis": {"return_results": True, **RETRY},
    "+hal": {**BISECT, **RETRY},
    "+bot": {**BOTH, **RETRY},
    "+max": {**BOTH, **RETRY, "max_retries": 0},
    "+any": {**BOTH, "autoretry_for": (Exception,)},
    "last": {**BOTH, **LAST},
    "1st": {**BOTH, **LAST, "unique_keep": "first"},
    "uniq": LAST,
    "+las": {**BOTH, **RETRY, **LAST},
    "ign": {**BOTH, "ignore_result": True},
}

TABLE = """
              none list half both +non +lis +hal +bot +max +any last 1st  uniq +las ign
list          UUUU DDDD UUUU DDDD UUUU DDDD UUUU DDDD DDDD DDDD DDDD DDDD UUUU DDDD DDDD
dict          UUUU DDDD UUUU DDDD UUUU DDDD UUUU DDDD DDDD DDDD DDDD DDDD UUUU DDDD DDDD
short         UUUU WWWW UUUU WWWW UUUU WWWW UUUU WWWW WWWW WWWW WWWW WWWW UUUU WWWW WWWW
nothing       UUUU WWWW UUUU WWWW UUUU WWWW UUUU WWWW WWWW WWWW WWWW WWWW UUUU WWWW WWWW
item          UUUU DDXD UUUU DDXD UUUU DDXD UUUU DDXD DDXD DDRD XDXD DDDD UUUU XDXD DDXD
item-again    UUUU DDXD UUUU DDXD UUUU DDRD UUUU DDRD DDXD DDRD XDXD DDDD UUUU RDRD DDXD
item-retry    UUUU DDHD UUUU DDHD UUUU DDHD UUUU DDHD DDHD DDHD HDHD DDDD UUUU HDHD DDHD
item-ignore   UUUU DDID UUUU DDID UUUU DDID UUUU DDID DDID DDID IDID DDDD UUUU IDID DDID
item-reject   UUUU DDJD UUUU DDJD UUUU DDJD UUUU DDJD DDJD DDJD JDJD DDDD UUUU JDJD DDJD
item-requeue  UUUU DDQD UUUU DDQD UUUU DDQD UUUU DDQD DDQD DDQD QDQD DDDD UUUU QDQD DDQD
item-refused  UUUU DDED UUUU DDED UUUU DDED UUUU DDED DDED DDED EDED DDDD UUUU EDED DDDD
raise-poison  PPPP PPPP UUPU DDPD PPPP PPPP UUPU DDPD DDPD DDRD PDPD DDDD PPPP PDPD DDPD
raise-again   PPPP PPPP UUPU DDPD RRRR RRRR UURU DDRD DDPD DDRD PDPD DDDD PPPP RDRD DDPD
raise-other   PPPP PPPP PPPP PPPP PPPP PPPP PPPP PPPP PPPP RRRR PPPP DDDD PPPP PPPP PPPP
raise-retry   HHHH HHHH HHHH HHHH HHHH HHHH HHHH HHHH HHHH HHHH HHHH HHHH HHHH HHHH HHHH
self-retry    RRRR RRRR RRRR RRRR RRRR RRRR RRRR RRRR MMMM RRRR RRRR RRRR RRRR RRRR RRRR
context-retry UURU DDRD UURU DDRD UURU DDRD UURU DDRD DDMD DDRD RDRD DDDD RURU RDRD DDRD
raise-ignore  IIII IIII IIII IIII IIII IIII IIII IIII IIII IIII IIII IIII IIII IIII IIII
raise-reject  JJJJ JJJJ JJJJ JJJJ JJJJ JJJJ JJJJ JJJJ JJJJ RRRR JJJJ JJJJ JJJJ JJJJ JJJJ
raise-requeue DQQQ DQQQ DQQQ DQQQ DQQQ DQQQ DQQQ DQQQ DQQQ DRRR QDQQ DQDQ QDQQ QDQQ DQQQ
marks-list    DOJU DOJD DOJU DOJD DOJU DOJD DOJU DOJD DOJD DOJD JOJD DODD JOJU JOJD DOJD
marks-nothing DOJU DOJW DOJU DOJW DOJU DOJW DOJU DOJW DOJW DOJW JOJW DODW JOJU JOJW DOJW
marks-raise   DOJP DOJP DOJP DOJP DOJP DOJP DOJP DOJP DOJP DOJR JOJP DODP JOJP JOJP DOJP
marks-all     DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD
backend-marks DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD DDDD
"""

#: Options of the task.
ACKS: dict[str, dict[str, Any]] = {
    "early": {},
    "late": {"acks_late": True},
    "strict": {"acks_late": True, "acks_on_failure_or_timeout": False},
    "lost": {"acks_late": True, "reject_on_worker_lost": True},
}

LATE = {**dict.fromkeys(LETTERS, "ack"), "J": "reject", "Q": "requeue"}
FAILED = [letter for letter, (state, *_) in LETTERS.items() if state == "FAILURE"]

#: What the broker is told of the message.
FATES: dict[str, dict[str, str]] = {
    "early": dict.fromkeys(LETTERS, "ack"),
    "late": LATE,
    "strict": {**LATE, **dict.fromkeys(FAILED, "reject")},
    "lost": LATE,
}


def _rows() -> dict[str, dict[str, str]]:
    head, *lines = TABLE.strip().splitlines()
    rows = {}
    for line in lines:
        way, *cells = line.split()
        rows[way] = dict(zip(head.split(), cells, strict=True))
    return rows


WAYS = _rows()


def cell(way: str, column: str) -> str:
    """Return the letters of one cell."""
    return WAYS[way][column]


def cells_of_turn(turn: int) -> list[tuple[str, str, str]]:
    """Return row, column and acknowledgement of each cell that a worker makes happen.

    Each worker has all rows and columns. In three turns, each has met each acknowledgement. (If no
    process is lost, "lost" is as "late".)
    """
    cells = [(way, column) for column in COLUMNS for way in WAYS]
    kinds = ("early", "late", "strict")
    return [(*each, kinds[(number + turn) % 3]) for number, each in enumerate(cells)]


def fates(way: str, column: str, acks: str) -> list[str]:
    """Return what the broker is told of each message of a cell."""
    return [FATES[acks][letter] for letter in cell(way, column)]


def letters(way: str, column: str, metas: list[dict[str, Any]], again: list[bool]) -> str:
    """Return the letters that fit what was found, as in the table if nothing is wrong.

    Arguments:
        way: The row.
        column: The column.
        metas: What the result backend has of each request.
        again: Whether each request was sent again.
    """
    found = zip(cell(way, column), metas, again, range(SIZE), strict=True)
    return "".join(
        letter if _fits(letter, column, meta, is_sent, number) else f"<{_describe(meta, is_sent)}>"
        for letter, meta, is_sent, number in found
    )


def _fits(letter: str, column: str, meta: dict[str, Any], is_sent: bool, number: int) -> bool:
    state, errors, is_sent_again = LETTERS[letter]
    if is_sent is not is_sent_again:
        return False
    if COLUMNS[column].get("ignore_result"):
        return meta["status"] == "PENDING"
    if letter == "D":
        return (meta["status"], meta["result"]) == (state, result_of(number, column))
    return meta["status"] == state and (not errors or type(meta["result"]).__name__ in errors)


def _describe(meta: dict[str, Any], is_sent: bool) -> str:
    return f"{meta['status']} {meta['result']!r}{' sent again' if is_sent else ''}"


def result_of(number: int, column: str) -> int:
    """Return the result of a done request: that of the one that was kept in its place."""
    if number in (0, ODD) and "unique_key" in COLUMNS[column]:
        return 0 if COLUMNS[column].get("unique_keep") == "first" else ODD
    return number


def task_options(column: str, acks: str, queue: str) -> dict[str, Any]:
    """Return the options of a task whose automatic retries go to that queue."""
    return {**COLUMNS[column], **ACKS[acks], "retry_kwargs": {"queue": queue}}
