"""Test how the calls of a batch task fail and are retried, with a clock that the test moves.

Run it with pytest::

    pip install pytest
    pytest test_retries.py
"""

import pytest
from celery import Celery

from celery_batches import Batches
from celery_batches.testing import BatchWorker, run_batch

app = Celery("mails")


class Server:
    """Stand in for a mail server."""

    is_up = True

    def send(self, address):
        if not self.is_up:
            raise ConnectionError("the server is down")
        if "@" not in address:
            raise ValueError(f"no address: {address}")


server = Server()


@app.task(
    base=Batches,
    flush_every=10,
    flush_interval=5,
    return_results=True,
    autoretry_for=(ConnectionError,),
    retry_kwargs={"countdown": 60, "max_retries": 2},
)
def send_mails(requests):
    return [try_to_send(*request.args) for request in requests]


def try_to_send(address):
    try:
        server.send(address)
    except Exception as exc:
        return exc
    return f"sent to {address}"


@pytest.fixture(autouse=True)
def a_server_that_is_up():
    server.is_up = True


def test_a_bad_address_fails_alone():
    batch = run_batch(send_mails, [("ann@example.com",), ("bob",)])
    assert batch.states == ["SUCCESS", "FAILURE"]
    assert str(batch.outcomes[1].exception) == "no address: bob"


def test_a_call_is_sent_again_when_the_server_is_up():
    with BatchWorker(send_mails) as worker:
        server.is_up = False
        call = worker.send(("ann@example.com",))
        worker.advance(5)
        assert call.state == "RETRY"
        server.is_up = True
        worker.advance(60)  # The call is back in the buffer.
        worker.advance(5)
        assert (call.state, call.result) == ("SUCCESS", "sent to ann@example.com")


def test_a_call_fails_when_its_retries_are_exhausted():
    with BatchWorker(send_mails) as worker:
        server.is_up = False
        call = worker.send(("ann@example.com",))
        worker.advance(3600)
        assert len(worker.batches) == 3
        assert call.state == "FAILURE"
        assert str(call.exception) == "the server is down"
