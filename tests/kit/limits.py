"""Rate limits: the token buckets of a worker."""

from __future__ import annotations

from kit.clock import Clock


class HandBucket:
    """Stands in for kombu's token bucket: a test puts the tokens in.

    Arguments:
        tokens: How many there are.
        wait: In how many seconds the next one is expected.
    """

    def __init__(self, tokens: int = 0, wait: float = 0.25) -> None:
        self.tokens = tokens
        self.wait = wait

    def can_consume(self, tokens: int) -> bool:
        if self.tokens < tokens:
            return False
        self.tokens -= tokens
        return True

    def expected_time(self, tokens: int) -> float:
        return self.wait


class Bucket:
    """Stands in for kombu's token bucket: it gets a token each second of the test's clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.spent = clock.now

    def can_consume(self, tokens: int) -> bool:
        if self.clock.now - self.spent < tokens:
            return False
        self.spent += tokens
        return True

    def expected_time(self, tokens: int) -> float:
        return max(0.0, self.spent + tokens - self.clock.now)
