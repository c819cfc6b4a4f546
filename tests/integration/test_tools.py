"""To the tools that watch tasks from inside the worker, a batch is one ordinary task.

Each tool has a worker to itself, where an ordinary task and a batch task do the same. What the tool
records of the ordinary task shows what is right, and that the test would see it. Where a batch
differs, the table of `docs/tools.py` says so. `scripts/peers.py` installs the tools.
"""

import importlib.util
import json
import re
from importlib.metadata import distribution
from itertools import count
from pathlib import Path

import pytest
from harness import DEADLINE, Deployment, Reports, options_for, python_of
from kombu.utils.uuid import uuid

import celery_batches

pytestmark = pytest.mark.redis

PATH = Path(__file__).parents[2] / "docs" / "tools.py"
spec = importlib.util.spec_from_file_location("tools_table", PATH)
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)

NUMBERS = count()


class Watched:
    """A worker with a tool in it."""

    def __init__(self, tool, site):
        self.tool = tool
        self.site = site
        self.seen = 0  # Reports up to the last fence.

    def ordinary(self, how, kind=""):
        """What the tool records when the ordinary task ends in this way."""
        task = getattr(self.site.module, f"alone{kind}")
        return self.recorded([task.delay(how)])

    def batch(self, how, kind=""):
        """What it records when a batch does."""
        task = getattr(self.site.module, f"together{kind}")
        return self.recorded([task.delay(how) for _ in range(2)])

    def recorded(self, calls):
        """What it records until these calls have ended, and the worker has done with them."""
        number = next(NUMBERS)
        for call in calls:
            call.get(timeout=DEADLINE, propagate=False)
        self.site.module.fence.delay(number)

        def ends(items):
            return [i for i, item in enumerate(items) if item.get("number") == number]

        items = self.site.reports.wait(lambda each: len(ends(each)), 1, what=f"fence {number}")
        start, self.seen = self.seen, ends(items)[0]
        found = items[start : self.seen]
        return [
            item for item in found if not re.search("fence$", item.get("name") or item["event"])
        ]


@pytest.fixture(
    scope="module",
    params=[(tool, pool) for tool in table.TOOLS for pool in ("prefork", "threads")],
    ids=lambda param: f"{param[0].module}-{param[1]}",
)
def watched(request, redis_url, tmp_path_factory):
    tool, pool = request.param
    python = python_of("tools")
    options = options_for(redis_url, redis_url, f"test-{uuid()}")
    reports = Reports()
    site = Deployment("tools_app", tmp_path_factory.mktemp("tools"), options, reports)
    link_package(site.directory)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TOOL", tool.module)
            with site.worker(pool, python=python, concurrency=1) as worker:
                yield Watched(tool, site)
                site.wait_until_active(worker, 0)
        assert not re.search("Signal handler .* raised", worker.text)
    finally:
        site.close()
        reports.close()


def link_package(directory):
    """Put the package under test where the worker, whose environment lacks it, imports from."""
    package = Path(celery_batches.__file__).parent
    (directory / package.name).symlink_to(package)
    installed = distribution("celery-batches")
    for name in {file.parts[0] for file in installed.files if ".dist-info" in file.parts[0]}:
        (directory / name).symlink_to(installed.locate_file(name))


def of(event, records):
    return [record for record in records if record["event"] == event]


def alike(records):
    """Records of either task without what tells them apart: its name, and the ids of its runs.

    Celery's `task_retry` is sent for each request: one line of the log for each is as it should be.
    """
    same = []
    for record in records:
        seen = {key: value for key, value in record.items() if key not in ("id", "pid")}
        seen = json.loads(json.dumps(seen).replace("together", "alone"))
        if not (seen.get("said") == "task_retrying" and seen in same[-1:]):
            same.append(seen)
    return same


def without_reason(records):
    """What is to be expected of a batch, where the reason of a retry is that of each request."""
    return [{**record, "reason": None} if "reason" in record else record for record in records]


def check_names(tool, records, task):
    """Every run is recorded under the name of the task, and all that is recorded is of a run."""
    runs = of("transaction", records)
    name = tool.name.replace("TASK", task).replace("FUNCTION", f"tools_app.{task}")
    assert {record["name"] for record in runs} == ({name} if tool.record else set())
    if runs and "id" in runs[0]:
        assert {record["id"] for record in records} == {record["id"] for record in runs}


def innermost(records):
    """The records with the last function of each traceback, that in which it was raised."""
    return [{**record, "frames": record.get("frames", [])[-1:]} for record in records]


def errors(records):
    """The errors among the records: class, text, functions of the app in the traceback."""
    found = [record for record in of("error", records) if record["exception"] != "Retry"]
    return [(record["exception"], record["message"], record["frames"]) for record in found]


def marks(records):
    """What bodies have said of themselves in these records."""
    return [mark for record in records for mark in record["marks"]]


@pytest.mark.parametrize(
    ("how", "runs", "raised"),
    [
        pytest.param("fine", 1, [], id="success"),
        pytest.param("fail", 1, [("KeyError", "'no luck'")], id="failure"),
        pytest.param("retry", 2, [], id="retry"),
        pytest.param("autoretry", 2, [("ConnectionError", "nobody answers")], id="exhausted"),
    ],
)
def test_a_batch_is_recorded_as_one_task(watched, how, runs, raised):
    """Of a batch a tool records the same as of an ordinary task that ends in the same way."""
    tool = watched.tool
    control = watched.ordinary(how)
    assert len(of("transaction", control)) == (runs if tool.record else 0)
    assert errors(control) == [(*error, ["alone", "act"]) for error in raised]
    check_names(tool, control, "alone")

    records = watched.batch(how)
    assert alike(records) == without_reason(alike(control))
    check_names(tool, records, "together")


def test_a_body_that_gives_up(watched):
    """With `self.retry(exc=…)` too often, the error has its causes and where it was raised."""
    control = watched.ordinary("give up")
    assert [(name, text) for name, text, _ in errors(control)] == [("KeyError", "'no luck'")]
    expected = innermost(without_reason(alike(control)))
    assert innermost(alike(watched.batch("give up"))) == expected


def test_a_task_with_a_call_of_its_own(watched):
    """Tools wrap `__call__` of a task that has one: once, as that of an ordinary task."""
    for how in ("fine", "fail"):
        control = watched.ordinary(how, "_called")
        assert len(errors(control)) == (how == "fail")
        records = watched.batch(how, "_called")
        assert alike(records) == alike(control)
        check_names(watched.tool, records, "together_called")


def test_a_retry(watched):
    """What the table says of retries: which tools note the reason, log them, or count errors."""
    tool = watched.tool
    control, records = watched.ordinary("retry"), watched.batch("retry")
    assert [bool(record.get("reason")) for record in control].count(True) == tool.reason
    assert [bool(record.get("reason")) for record in records].count(True) == 0
    for size, each in ((1, control), (2, records)):
        said = [record.get("said") for record in each]
        assert said.count("task_retrying") == size * tool.logs_retry
        assert len(of("error", each)) == tool.retry_is_error


def test_a_request_that_fails_alone(watched):
    """Tools that listen to `task_failure` report it. To the others, the batch is a success."""
    tool = watched.tool
    success = alike(watched.batch("fine"))
    calls = [watched.site.module.together.delay("fail alone") for _ in range(2)]
    records = watched.recorded(calls)
    reported = of("error", records)
    assert alike([record for record in records if record not in reported]) == success
    assert errors(records) == [("KeyError", "'no luck'", [])] * tool.single
    # By its id, or as something in the run of the batch: Elastic, and django-structlog before 11.
    runs = {record["id"] for record in of("transaction", records) if reported}
    assert {record["id"] for record in reported} <= {calls[0].id, *runs}


def test_nothing_said_in_a_batch_is_left_behind(watched):
    """User, tags and the like belong to one batch: not to the next one, nor to a task after it."""
    control = watched.ordinary("mark")
    assert bool(marks(control)) == bool(watched.tool.keeps)
    assert marks(watched.ordinary("fail")) == []
    assert alike(watched.batch("mark")) == alike(control)
    assert marks(watched.batch("fail")) == []
    assert marks(watched.ordinary("fail")) == []
