"""The public names as a user writes them, for type checkers: it is checked, never run.

Comments mark what a checker must refuse. It also refuses a comment that it does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from celery import Celery

from celery_batches import Batches, BatchInfo, SimpleRequest, __version__
from celery_batches.testing import BatchResult, BatchWorker, SentCall, make_request, run_batch
from celery_batches.trace import apply_batches_task

version: str = __version__
app = Celery("typed")

six = SimpleRequest("id", "name", ["a"], {"k": 1}, {"exchange": ""}, "worker@host")
ten = SimpleRequest("id", "name", (), {}, None, None, True, "reply", "correlation", {"id": "id"})
named = SimpleRequest(id="id", name="name", args=[], kwargs={}, delivery_info={}, hostname="h")

id_: str = six.id
name: str = six.name
args: Sequence[Any] = six.args
kwargs: Mapping[str, Any] = six.kwargs
delivery_info: dict[str, Any] | None = six.delivery_info
hostname: str | None = six.hostname
ignore_result: bool = six.ignore_result
reply_to: str | None = six.reply_to
correlation_id: str | None = six.correlation_id
headers: dict[str, Any] | None = six.headers
redelivered: bool = six.redelivered
time_limit: float | None = six.time_limit
root_id: str | None = six.root_id
retries: int = six.retries
eta: str | None = six.eta
stamps: Mapping[str, Any] | None = six.stamps
timelimit: Sequence[float | None] | None = six.timelimit
options: dict[str, Any] = six.as_execution_options()
tenant: Any = six.get("tenant")
six.update_state("PROGRESS", {"done": 1})
with six.context():
    pass
received: Any = None  # Celery's, of a message that a worker has received.
made: SimpleRequest = SimpleRequest.from_request(received)

# A header has no type, and a name that is misspelt is an error.
header: Any = six.tenant  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
misspelt: Any = six.retires  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
six.mark_as_failed(ValueError())  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
six.mark_as_failure("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
SimpleRequest("id", "name")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
wrong: int = six.id  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


def count(requests: list[SimpleRequest]) -> int:
    return sum(len(request.args) for request in requests)


class Click(Batches):
    flush_every = 100
    flush_interval = timedelta(seconds=10)

    def flush(self, requests: Any) -> Any:
        return super().flush(requests)


class Fetch(Batches):
    async def run(self, requests: list[SimpleRequest]) -> list[int]:
        return [len(request.args) for request in requests]


class Upsert(Batches):
    flush_every = 1000
    flush_interval = 0.5

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return count(*args)


class Own(SimpleRequest):
    @property
    def tenant(self) -> str:
        return str((self.headers or {}).get("tenant"))


task: Batches = Click()
every: int = task.flush_every
seconds: float = task.flush_interval_seconds
handler: Callable[..., Any] = task.Strategy(task, app, received)
task.flush([])
task.apply_buffer([], ([],), {})
result: Any = task.apply(("a",), {"k": 1}, task_id="id", throw=True)
returned: Any = apply_batches_task(task, ([six],), 0, None)

six.mark_as_done({"any": "result"})
six.mark_as_failure(ValueError("why"))
six.retry(countdown=0.5, exc=ValueError("why"), max_retries=3, queue="slow")
six.reject(requeue=True)
children: list[Any] = six.children
retried: Exception = task.retry(exc=ValueError("why"), countdown=5, throw=False)
again: Exception = task.retry_request(six, countdown=1)
task.update_state(task_id=six.id, state="PROGRESS", meta={"done": 1})
task.send_event("task-progress", done=1)
info: BatchInfo = task.batch
flushed_by: str = info.trigger
waited: float = info.waited
task.batch = info  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
batch: BatchResult = run_batch(task, [make_request(["a"], retries=1), ("b",), task.s("c")])
found: list[str] = batch.states
with BatchWorker(task) as worker:
    call: SentCall = worker.send(["a"], {"k": 1}, countdown=5, expires=worker.now)
    worker.advance(10.5)
    ran: list[BatchResult] = worker.batches
    ended: tuple[str, BaseException | None, str] = call.state, call.exception, call.delivery
    trigger: str = worker.batches[0].trigger
    worker.revoke(call)
worker.send("text", "text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
