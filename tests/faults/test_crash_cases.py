"""The cases of `test_crash_points` cover what they say, and are judged by their rule."""

from dataclasses import replace

import pytest
from faults.crash_cases import ACKS, CONFIGS, MODES, STEPS, WAYS, Case, Config, all_cases, few_cases
from faults.crash_judge import BOTH, CHORD_FORGOTTEN, LOST, STUCK, TWICE, Judge
from faults.crash_run import Fate, Result

CONFIG = Config("rabbitmq", "redis", dedup=False, bulk=True)
CASE = Case("state stored: after", 2, "process killed", "early", "link", CONFIG, plain_point="p")
WELL = Fate(runs=1, state="SUCCESS", continued=1)


def test_each_step_is_lost_in_each_way_with_each_acknowledgement():
    cases = all_cases()
    assert len({case.id for case in cases}) == len(cases)
    for step in STEPS:
        for point in step.points:
            mine = {(c.way, c.acks) for c in cases if c.point == point}
            ways = WAYS[:3] if step.main or "redis" not in step.backends else WAYS
            assert mine == {(way, acks) for way in ways for acks in step.acks}, point


@pytest.mark.parametrize("cases", [all_cases(), few_cases()], ids=["all", "few"])
def test_each_way_of_losing_meets_each_mode_and_each_acknowledgement(cases):
    assert {case.way for case in cases} == set(WAYS)
    assert {case.acks for case in cases} == set(ACKS)
    assert {case.mode for case in cases} >= set(MODES)


@pytest.mark.parametrize("way", WAYS[:3])
@pytest.mark.parametrize("acks", ACKS)
def test_each_way_and_acknowledgement_meet_every_configuration(way, acks):
    mine = [case for case in all_cases() if (case.way, case.acks) == (way, acks)]
    axes = ("broker", "backend", "dedup", "bulk")
    for axis in axes:
        met = {getattr(case.config, axis) for case in mine}
        assert met == {getattr(config, axis) for config in CONFIGS}
    assert {case.mode for case in mine} >= set(MODES)


@pytest.mark.parametrize("way", WAYS)
def test_a_retry_is_compared_with_one_that_was_sent_by_an_ordinary_task(way):
    """Unless only its result backend was away."""
    case = replace(CASE, point="retry published: before", way=way, mode="retry")
    points = {neighbour.point for neighbour in case.neighbours()}
    assert ("retry published: after" in points) is (way != "backend away")


def worse(case, fate, *ordinary, chord=None):
    """Return what is worse with a batch in which one call has this fate."""
    results = {case: Result(case, fates=[WELL, fate], chord=chord)}
    for number, control in enumerate(ordinary or [WELL]):
        other = replace(case.control(), point=f"p{number}") if number else case.control()
        results[other] = Result(other, fates=[control], chord="SUCCESS" if chord else None)
    return Judge(results).judge(case).worse


@pytest.mark.parametrize(
    ("fate", "wrong"),
    [
        (replace(WELL, state="PENDING"), STUCK),
        (replace(WELL, state="RETRY"), STUCK),
        (replace(WELL, continued=0), LOST),
        (replace(WELL, runs=2), TWICE),
        (replace(WELL, failed=1), f"{BOTH} (SUCCESS)"),
    ],
)
def test_what_no_ordinary_task_suffers_is_worse(fate, wrong):
    assert worse(CASE, fate) == {wrong}
    assert worse(CASE, fate, fate) == set()
    assert worse(CASE, fate, WELL, fate) == set(), "an ordinary task is so at another step"


@pytest.mark.parametrize(
    ("fate", "wrong"),
    [
        (replace(WELL, state="PENDING"), set()),
        (Fate(runs=1, failed=1), set()),
        (Fate(runs=1), {LOST}),
        (replace(WELL, state="PENDING", failed=1), {f"{BOTH} (PENDING)"}),
    ],
)
def test_without_a_state_a_call_is_judged_by_what_it_has_told(fate, wrong):
    well = replace(WELL, state="PENDING")
    case = replace(CASE, config=replace(CONFIG, backend="ignored"))
    assert worse(case, fate, well) == wrong


def test_a_chord_that_waits_is_worse_than_one_that_ends():
    assert worse(replace(CASE, mode="chord"), WELL, chord="PENDING") == {CHORD_FORGOTTEN}


def test_what_is_told_in_two_ways_is_worse_when_it_is_stored_as_a_success():
    failed = Fate(runs=1, state="FAILURE", continued=1, failed=1)
    assert worse(CASE, replace(failed, state="SUCCESS"), failed) == {f"{BOTH} (SUCCESS)"}
