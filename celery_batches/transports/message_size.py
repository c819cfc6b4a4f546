"""Finds the size of a message as the broker has it. Runs in the worker's main process.

kombu decompresses a message when it arrives. Its own brokers (Redis, databases, in-memory, …) keep
what they have received. py-amqp's message is gone by then, so a compressed one is compressed again.
"""

from __future__ import annotations

from typing import Any

from kombu import Message
from kombu.compression import compress

__all__ = ("received_size",)


def received_size(message: Message) -> int:
    """Return the bytes of the body of a message, as the broker has it: compressed, if it is."""
    compression = (message.headers or {}).get("compression")
    body: Any = message.body or b""
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    if not compression:
        return len(body)
    received = getattr(message, "_raw", None)
    if isinstance(received, dict) and isinstance(received.get("body"), str):
        return _decoded_size(received["body"], received.get("properties") or {})
    return len(compress(body, compression)[0])


def _decoded_size(body: str, properties: dict[str, Any]) -> int:
    if properties.get("body_encoding") != "base64":
        return len(body)
    return len(body) * 3 // 4 - body[-2:].count("=")
