"""How each request of a batch ends."""

from celery import states

from celery_batches import Batches
from celery_batches.core.outcomes import UNMARKED, Done, Failed, decide
from celery_batches.core.slot import OutcomeSlot


def test_the_first_outcome_wins():
    """What a request was marked with first is how it ends."""
    slot = OutcomeSlot()
    assert slot.record(Done(1))
    assert not slot.record(Failed(KeyError()))
    assert slot.outcome == Done(1)


def test_each_request_has_exactly_one_outcome():
    """A request without an outcome of its own gets that of the body."""
    done = Done(1)
    assert decide([None, done, None], default=UNMARKED) == [UNMARKED, done, UNMARKED]


def test_after_return_is_told_of_the_failure(app):
    """``after_return`` gets the ``ExceptionInfo`` of a failure, as Celery documents it."""
    told = []

    class Told(Batches):
        abstract = True

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            told.append((status, "KeyError" in str(einfo)))

    @app.task(base=Told)
    def fails(requests):
        raise KeyError("no")

    fails.apply(throw=False)
    assert told == [(states.FAILURE, True)]
