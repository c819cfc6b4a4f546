"""Many of everything at once."""

from kombu.utils.uuid import uuid

REVOKED = 10_000
CALLS = 4


def test_200_batch_tasks_and_10_000_revoked_ids(broker, deploy):
    """Every batch fills and runs once, without the revoked calls, while nobody reads its events.

    One call of each task is revoked, and one of an ordinary task.
    """
    site = deploy("many_app", broker)
    tasks = [*site.module.BATCHES, site.module.ordinary]
    ids = {task.name: [uuid() for _ in range(CALLS + 1)] for task in tasks}
    revoked = [first for first, *_ in ids.values()]
    with site.worker("prefork", "-E") as worker:
        # Before they are sent. The answer says that the worker knows of it.
        site.wait_until_active(worker, 0)
        others = [uuid() for _ in range(REVOKED - len(revoked))]
        options = {"reply": True, "destination": [worker.node], "timeout": 30}
        assert site.app.control.revoke([*others, *revoked], **options)
        for number in range(CALLS + 1):
            for task in tasks:
                task.apply_async(task_id=ids[task.name][number])
        site.reports.expect("run", len(tasks) * CALLS, each=lambda report: len(report["ids"]))
        site.reports.expect("revoked", len(tasks))
        site.wait_until_active(worker, 0)
    runs = site.reports.of("run")
    assert len(runs) == len(site.module.BATCHES) + CALLS
    for name, (_, *others) in ids.items():
        ran = [i for report in runs if report["name"] == name for i in report["ids"]]
        assert sorted(ran) == sorted(others)
    assert sorted(report["id"] for report in site.reports.of("revoked")) == sorted(revoked)
    assert worker.problems == []
    assert site.messages_left() == 0
