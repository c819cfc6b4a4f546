"""The size of a message is what the broker has: compressed, if it is."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection, Message
from kombu.transport import pyamqp

from celery_batches.transports.message_size import received_size

TEXT = "a lot of the same, " * 500


def received(compression: str | None) -> Message:
    """Send a message through kombu's in-memory broker."""
    with Connection("memory://") as connection:
        queue = connection.SimpleQueue(f"size-{compression}")
        queue.put(TEXT, serializer="json", compression=compression)
        message = queue.get(timeout=1)
        message.ack()
        queue.close()
    return message


def test_a_message_that_is_not_compressed() -> None:
    assert received_size(received(None)) == len(json.dumps(TEXT))


@pytest.mark.parametrize("compression", ["gzip", "bzip2"])
def test_a_compressed_message(compression: str) -> None:
    """It is decompressed when it arrives, and counts as it was."""
    message = received(compression)
    size = received_size(message)
    assert len(message.body) == len(json.dumps(TEXT))
    assert 0 < size < 500


def test_a_compressed_message_from_rabbitmq() -> None:
    """py-amqp's message is gone, so its size is worked out."""
    body = gzip.compress(json.dumps(TEXT).encode())
    headers = {"compression": "application/x-gzip"}
    sent: Any = SimpleNamespace(
        body=body,
        delivery_tag=1,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_info={},
        properties={"application_headers": headers},
        headers=headers,
    )
    message = pyamqp.Message(sent)
    assert abs(received_size(message) - len(body)) < 50


@pytest.mark.parametrize(("body", "size"), [(None, 0), ("", 0), ("ä", 2), (b"abc", 3)])
def test_whatever_the_body_is(body: Any, size: int) -> None:
    assert received_size(Message(body)) == size
