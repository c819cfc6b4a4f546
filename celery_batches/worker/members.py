"""Selects the requests of a batch that can run. Runs in the worker's main process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..request import SimpleRequest
from .body_args import BodyArguments
from .member_request import MemberRequest, notify

__all__ = ("Members", "take_members")

#: A hard and a soft time limit in seconds, or None.
TimeLimits = tuple[float | None, float | None]


@dataclass(slots=True)
class Members:
    """The requests of a batch that can run, in the forms that the pool needs.

    Attributes:
        requests: The requests.
        simple_requests: The `SimpleRequest` of each, in the same order.
        time_limits: All different time limits of the requests.
    """

    requests: list[MemberRequest] = field(default_factory=list)
    simple_requests: list[SimpleRequest] = field(default_factory=list)
    time_limits: set[TimeLimits] = field(default_factory=set)

    def tightest_limits(self, default: TimeLimits) -> TimeLimits:
        """Return the tightest hard and the tightest soft time limit.

        Arguments:
            default: The limits of a request that has none of its own.
        """
        hard, soft = zip(*self.time_limits, strict=True)
        return _tightest(hard, default[0]), _tightest(soft, default[1])


def take_members(
    requests: Iterable[MemberRequest], body_args: BodyArguments | None, *, about: object
) -> Members:
    """Return the requests that are not revoked, expired or malformed.

    Arguments:
        requests: The requests.
        body_args: Arguments for the body, if an override of `flush` has made them.
        about: The batch to name in the log.
    """
    members = Members()
    make = SimpleRequest.from_request if body_args is None else body_args.simple_request
    for request in requests:
        try:
            if request.revoked():
                continue
            limits = _time_limits(request.time_limits)
            members.simple_requests.append(make(request))
        except Exception as exc:
            notify(request.refuse, exc, about=about)
        else:
            members.requests.append(request)
            members.time_limits.add(limits)
    return members


def _time_limits(limits: Any) -> TimeLimits:
    """Return the hard and the soft limit of one call in seconds.

    Raises:
        TypeError: If they are not two numbers.
        ValueError: If they are not two.
    """
    hard, soft = limits
    return hard and hard + 0, soft and soft + 0


def _tightest(limits: Sequence[float | None], default: float | None) -> float | None:
    return min(filter(None, [limit or default for limit in limits]), default=None)
