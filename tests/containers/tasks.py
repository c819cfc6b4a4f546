"""Batch tasks. pytest-celery copies this file into the container of the worker."""

from celery import shared_task

from celery_batches import Batches


@shared_task(base=Batches, flush_every=3, flush_interval=600)
def double(requests):
    for request in requests:
        number = request.args[0]
        if number < 0:
            request.mark_as_failure(ValueError(f"{number} is negative"))
        else:
            request.mark_as_done(number * 2)


@shared_task(base=Batches, flush_every=100, flush_interval=0.5)
def halve(requests):
    for request in requests:
        request.mark_as_done(request.args[0] // 2)
