"""Tasks made by Celery's decorator, which has types only with ``celery-types``.

It is checked, never run.
"""

from __future__ import annotations

from celery import Celery

from celery_batches import Batches, SimpleRequest
from celery_batches.testing import run_batch

app = Celery("typed")


class Click(Batches):
    flush_every = 100


@app.task(base=Batches, flush_every=100, flush_interval=10, return_results=True)
def plain(requests: list[SimpleRequest]) -> list[int]:
    return [len(request.args) for request in requests]


@app.task(base=Click, bind=True, autoretry_for=(OSError,), unique_key="user")
def bound(self: Click, requests: list[SimpleRequest]) -> None:
    retries: int = self.request.retries
    for request in requests:
        request.mark_as_done(retries)


plain.delay(1, key="value")
bound.apply_async((1,), countdown=5)
run_batch(plain, [plain.s(1)])
plain.flush_interval = 0.5

plain.mark_as_done(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
plain.flush_intervall = 5  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
