"""Shortcut ``bulk_results`` for chord parts in Redis: stores and counts one in one transaction.

Runs in the pool.

Celery stores the state of a chord part and then counts the part. Here its own code does both, on
copies of the backend. A stand-in for the client waits for the first command that counts, and sends
the state together with it. Everything else goes to the client itself.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from hashlib import sha1
from typing import TYPE_CHECKING, Any, TypeAlias

from .redis_bulk import Data
from .state import copy_backend

if TYPE_CHECKING:
    from celery.backends.redis import RedisBackend

__all__ = ("OldStates", "RedisPart")

#: A method of a pipeline, and its arguments.
Command: TypeAlias = "tuple[str, tuple[Any, ...], dict[str, Any]]"

#: What the keys of some tasks hold, if it has been read before.
OldStates: TypeAlias = MutableMapping[Data, Data | None]


class RedisPart:
    """One done chord part.

    Arguments:
        backend: The result backend.
        old_states: What is stored for its task. Each value is used once, and then read again.

    Attributes:
        refusal: The error with which Redis has refused the transaction. The part is then stored
            and counted as Celery does it.
    """

    def __init__(self, backend: RedisBackend, old_states: OldStates) -> None:
        self.backend = backend
        self.old_states = old_states
        self.is_counted = False
        self.refusal: Exception | None = None
        self._state: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def mark_as_done(self, *args: Any, **kwargs: Any) -> Any:
        """Store the state and count the part, by Celery's ``mark_as_done``.

        Raises:
            Exception: Whatever the backend raises.
        """
        client = _CountingClient(self.backend.client, self)
        copy = copy_backend(self.backend, client=client, store_result=self._store_later)
        # Called on the class, since `pool.marking` intercepts the method of the instance.
        returned = type(self.backend).mark_as_done(copy, *args, **kwargs)
        if not self.is_counted:
            self._store(self.backend)
        return returned

    def count(self, commands: list[Command]) -> list[Any] | None:
        """Send the commands that count the part together with its state.

        Returns:
            The replies to these commands. None if Redis has refused them. Then only the state is
            stored, and the part is yet to be counted.
        """
        from redis.exceptions import ResponseError

        self.is_counted = True
        client = _StoringClient(self.backend.client, self.old_states, commands)
        always_retry = self.backend.always_retry
        try:
            self._store(copy_backend(self.backend, client=client, always_retry=always_retry))
            if client.replies is None:  # There is no state to store, or it is stored already.
                client.replies = _send(client.client, commands)
        except ResponseError as exc:
            self.refusal = exc
            self._store(self.backend)
        return client.replies

    def _store_later(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_counted:  # This is the state of another task, such as the body of the chord.
            return self.backend.store_result(*args, **kwargs)
        self._state = args, kwargs
        return None

    def _store(self, backend: RedisBackend) -> None:
        if self._state is not None:
            args, kwargs = self._state
            backend.store_result(*args, **kwargs)


class _CountingClient:
    """Stands in for a Redis client while a part is counted.

    Celery 5.7 counts with a script, older versions with a pipeline.
    """

    def __init__(self, client: Any, part: RedisPart) -> None:
        self._client = client
        self._part = part
        self._script: str | bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def evalsha(self, sha: str, numkeys: int, *args: Any) -> Any:
        from redis.exceptions import NoScriptError

        if not self._part.is_counted:
            if self._script is None:
                # The caller now loads the script. If Redis had to know it, the transaction could
                # store the state and not count the part.
                raise NoScriptError
            replies = self._part.count([("eval", (self._script, numkeys, *args), {})])
            if replies is not None:
                return replies[0]
        return self._client.evalsha(sha, numkeys, *args)

    def script_load(self, script: str | bytes) -> Any:
        if self._part.is_counted:
            return self._client.script_load(script)
        self._script = script
        return sha1(script.encode() if isinstance(script, str) else script).hexdigest()

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        if self._part.is_counted:
            return self._client.pipeline(*args, **kwargs)
        return _Pipeline(self._count)

    def _count(self, commands: list[Command]) -> list[Any]:
        replies = self._part.count(commands)
        return _send(self._client, commands) if replies is None else replies


class _StoringClient:
    """Stands in for a Redis client while the state of a part is stored.

    Its first pipeline also sends the commands that count the part.
    """

    def __init__(self, client: Any, old_states: OldStates, counting: list[Command]) -> None:
        self.client = client
        self.replies: list[Any] | None = None
        self._old_states = old_states
        self._counting = counting

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def get(self, key: Data) -> Data | None:
        if key in self._old_states:
            return self._old_states.pop(key)
        value: Data | None = self.client.get(key)
        return value

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        if self.replies is not None:
            return self.client.pipeline(*args, **kwargs)
        return _Pipeline(self._store)

    def _store(self, commands: list[Command]) -> list[Any]:
        replies = _send(self.client, commands + self._counting)
        self.replies = replies[len(commands) :]
        return replies[: len(commands)]


class _Pipeline:
    """Stands in for a pipeline: collects its commands."""

    def __init__(self, send: Callable[[list[Command]], list[Any]]) -> None:
        self._send = send
        self._commands: list[Command] = []

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., _Pipeline]:
        def collect(*args: Any, **kwargs: Any) -> _Pipeline:
            self._commands.append((name, args, kwargs))
            return self

        return collect

    def execute(self) -> list[Any]:
        commands, self._commands = self._commands, []
        return self._send(commands)


def _send(client: Any, commands: list[Command]) -> list[Any]:
    """Send commands in one transaction, and return the replies."""
    with client.pipeline() as pipeline:
        for name, args, kwargs in commands:
            getattr(pipeline, name)(*args, **kwargs)
        replies: list[Any] = pipeline.execute()
    return replies
