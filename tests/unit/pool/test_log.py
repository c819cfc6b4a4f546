"""The line of a batch in the log, and at which level its failures are."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from kit.log import messages
from kit.tracing import World


def test_the_line_of_a_batch_counts_other_endings(
    sending: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that ended in another way than the batch are counted in its line."""

    def body(requests: Any) -> None:
        requests[0].mark_as_failure(ValueError())
        requests[1].retry()

    sending.run(body)
    (line,) = [m for m in messages(caplog, logging.INFO) if m.startswith("Batch")]
    assert line.endswith("(1 failed, 1 retried)")
    debug = messages(caplog, logging.DEBUG)
    assert [line.rsplit(" ", 1)[-1] for line in debug if "had" in line] == [
        *("failed", "retried", "unmarked")
    ]


def test_the_line_of_a_retried_batch(sending: World, caplog: pytest.LogCaptureFixture) -> None:
    """A batch that is retried is one line at INFO."""

    def body(self: Any, requests: Any) -> None:
        raise self.retry(countdown=5)

    sending.define(body, bind=True)
    sending.run(None)
    (line,) = [m for m in messages(caplog, logging.INFO) if m.startswith("Batch")]
    assert "retried in" in line
    assert "Retry in 5s" in line
    assert "(" not in line.split("retried in")[1]


def test_expected_exceptions_are_no_errors(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """`throws` keeps a failure out of the error log, and a failure it is all the same."""

    def body(requests: Any) -> None:
        raise KeyError("expected")

    world.define(body, throws=(KeyError,))
    world.run(None)
    assert messages(caplog, logging.ERROR) == []
    assert any("raised expected" in line for line in messages(caplog, logging.INFO))
    assert world.states == ["FAILURE"] * 3
