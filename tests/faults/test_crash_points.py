"""Something is lost at every step between the return of the body and the acknowledgement.

`make crashpoints` runs all cases, and shows the tables. Without it, a few of them run here.
"""

import os

import pytest
from faults.crash_cases import all_cases, few_cases
from faults.crash_judge import Judge
from faults.crash_known import KNOWN
from faults.crash_run import run_all
from faults.crash_table import account

IS_ALL = os.environ.get("CRASHPOINTS") == "all"
CASES = all_cases() if IS_ALL else few_cases()

pytestmark = [
    pytest.mark.redis,
    pytest.mark.rabbitmq,
    # The first of them waits for all.
    pytest.mark.timeout(1800 if IS_ALL else 600),
]


@pytest.fixture(scope="module")
def results(redis_url, rabbitmq_url, tmp_path_factory, crash_results):
    """The results of all cases, each with that of an ordinary task."""
    controls = [case.control() for case in CASES]
    if not IS_ALL:  # All are enough for each other.
        controls += [neighbour for case in CASES for neighbour in case.neighbours()]
    cases = [*CASES, *dict.fromkeys(controls)]
    urls = {"redis": redis_url, "rabbitmq": rabbitmq_url}
    directory = tmp_path_factory.mktemp("crash")
    crash_results.update(run_all(cases, urls, directory, at_once=6 if IS_ALL else 3))
    return crash_results


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_calls_of_a_batch_fare_no_worse_than_ordinary_tasks(case, results):
    result, control = results[case], results[case.control()]
    print(f"--- {case.id}\n{result.log}\n--- an ordinary task\n{control.log}\n---")
    assert result.reached, "the worker never came to this point"
    assert control.reached, "the worker never came to this point with an ordinary task"
    worse = Judge(results).judge(case).worse
    marks = [mark for mark in KNOWN if any(mark.covers(case, wrong) for wrong in worse)]
    if marks and all(any(mark.covers(case, wrong) for mark in marks) for wrong in worse):
        pytest.xfail("; ".join(mark.reason for mark in marks))
    assert not worse, f"{account(result)}\nan ordinary task: {account(control)}"


@pytest.mark.skipif(not IS_ALL, reason="few cases need not show each of them")
@pytest.mark.parametrize("mark", [pytest.param(mark, id=mark.reason) for mark in KNOWN])
def test_what_is_known_to_be_worse_still_is(mark, results):
    judge = Judge(results)
    excused = [
        case for case in CASES if any(mark.covers(case, wrong) for wrong in judge.judge(case).worse)
    ]
    assert excused, "it is mended: delete it from crash_known.py"
