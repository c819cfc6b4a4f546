"""Bodies that end as the rows of the table say."""

from celery.exceptions import Ignore, Reject, Retry
from outcome_table import ODD, Item, Own, Poison, Transient, Unlisted

#: Keyword arguments of each call: the first and the odd one have the same key.
CALLS = [([number], {"key": key}) for number, key in enumerate("abac")]

ITEMS = {
    "item": Item,
    "item-again": Transient,
    "item-retry": Retry,
    "item-ignore": Ignore,
    "item-reject": lambda: Reject(requeue=False),
    "item-requeue": lambda: Reject(requeue=True),
    "item-refused": lambda: ODD.__class__,  # A class is no JSON.
}
RAISES = {
    "raise-poison": Poison,
    "raise-again": Transient,
    "raise-other": Unlisted,
}
ENDS = {
    "raise-retry": Retry,
    "raise-ignore": Ignore,
    "raise-reject": lambda: Reject(requeue=False),
}


def number_of(request):
    return request.args[0]


def body_for(way, queue):
    """The body of a bound task that goes this way; what it retries itself goes to that queue."""

    def body(self, requests):
        numbers = list(map(number_of, requests))
        if way in ENDS:
            raise ENDS[way]()
        if way in RAISES and ODD in numbers:
            raise RAISES[way]()
        if way in SPECIAL:
            return SPECIAL[way](self, requests, queue)
        if way in ITEMS:
            return [ITEMS[way]() if number == ODD else number for number in numbers]
        return numbers

    return body


def mark_some(requests):
    for request in requests:
        match number_of(request):
            case 0:
                request.mark_as_done(0)
            case 1:
                request.mark_as_failure(Own())
            case 2:
                request.reject()


def marks_list(task, requests, queue):
    mark_some(requests)
    return list(map(number_of, requests))


def marks_nothing(task, requests, queue):
    mark_some(requests)


def marks_raise(task, requests, queue):
    mark_some(requests)
    raise Poison


def marks_all(task, requests, queue):
    for request in requests:
        request.mark_as_done(number_of(request))


def backend_marks(task, requests, queue):
    for request in requests:
        task.app.backend.mark_as_done(
            request.id, number_of(request), request, store_result=not request.ignore_result
        )


def raise_requeue(task, requests, queue):
    requests[0].mark_as_done(number_of(requests[0]))
    raise Reject(requeue=True)


def self_retry(task, requests, queue):
    raise task.retry(queue=queue)


def context_retry(task, requests, queue):
    for request in requests:
        if number_of(request) == ODD:
            with request.context():
                task.retry(queue=queue)
    return list(map(number_of, requests))


SPECIAL = {
    "dict": lambda task, requests, queue: {r.id: number_of(r) for r in reversed(requests)},
    "short": lambda task, requests, queue: [None] * (len(requests) - 1),
    "nothing": lambda task, requests, queue: None,
    "marks-list": marks_list,
    "marks-nothing": marks_nothing,
    "marks-raise": marks_raise,
    "marks-all": marks_all,
    "backend-marks": backend_marks,
    "raise-requeue": raise_requeue,
    "self-retry": self_retry,
    "context-retry": context_retry,
}
