"""What a measurement leaves in Redis."""

from __future__ import annotations

from typing import Any

from redis import Redis

__all__ = ("delete_keys_of", "keys_of")

#: Keys for each round trip.
MANY = 1000


def keys_of(url: str, name: str) -> list[Any]:
    """The keys that have this in their names."""
    with Redis.from_url(url) as client:
        return list(client.scan_iter(match=f"*{name}*", count=MANY))


def delete_keys_of(url: str, name: str) -> None:
    """Delete these keys."""
    found = keys_of(url, name)
    with Redis.from_url(url) as client:
        for start in range(0, len(found), MANY):
            client.delete(*found[start : start + MANY])
