"""A process that runs a batch is sent each signal once, whatever becomes of how many requests."""

import signal

import pytest
from celery import Task
from celery.utils.imports import qualname
from celery.worker.request import Request

from celery_batches.worker.member_request import MemberRequest, member_class
from kit.pool import Pool


class Plain:
    """As much of Celery's request as ends a process."""

    _apply_result = None

    def __init__(self, task_id):
        self.id = task_id

    def terminate(self, pool, signum=None):
        pool.terminate_job(1, signum)

    def cancel(self, pool, signum=None, emit_retry=True):
        pool.terminate_job(1, signum)


@pytest.fixture
def members():
    members = [member_class(Plain)(task_id) for task_id in "abc"]
    signalled = {}
    for member in members:
        member.signalled = signalled
    return members


@pytest.mark.parametrize("end", ["terminate", "cancel"])
def test_the_members_send_a_signal_once_together(end, members):
    pool = Pool()
    for member in members:
        getattr(member, end)(pool, signal.SIGTERM)
    assert pool.terminated == [(1, signal.SIGTERM)]


def test_another_signal_is_sent(members):
    pool = Pool()
    members[0].terminate(pool, signal.SIGTERM)
    members[1].terminate(pool, signal.SIGKILL)
    assert pool.terminated == [(1, signal.SIGTERM), (1, signal.SIGKILL)]


def test_who_has_asked_before_is_heard_again(members):
    pool = Pool()
    for member in members[:2] * 2:
        member.terminate(pool, signal.SIGTERM)
    assert pool.terminated == [(1, signal.SIGTERM)] * 3


def test_what_the_pool_could_not_send_counts_as_not_sent(members):
    class Unable(Pool):
        def terminate_job(self, pid, signum):
            raise NotImplementedError

    for member in members:
        with pytest.raises(NotImplementedError):
            member.terminate(Unable(), signal.SIGTERM)
    pool = Pool()
    members[0].terminate(pool, signal.SIGTERM)
    assert pool.terminated == [(1, signal.SIGTERM)]


def test_a_request_that_is_in_no_batch_yet_sends_its_own():
    pool = Pool()
    member = member_class(Plain)("a")
    for _ in range(2):
        member.cancel(pool, signal.SIGTERM, emit_retry=False)
    assert len(pool.terminated) == 2


@pytest.mark.parametrize("given", [Task.Request, Request, Plain])
def test_the_request_class_of_the_task_is_kept_as_the_base(given):
    made = member_class(given)
    assert made.__mro__[1] is MemberRequest
    assert issubclass(made, Plain if given is Plain else Request)
    assert qualname(made) == qualname(made.__mro__[2])
    assert member_class(made) is made
