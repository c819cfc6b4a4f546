"""Compares what became of batches with what becomes of ordinary tasks. Pure.

An ordinary task is lost at one step. When a batch is lost, each of its calls has come to a step of
its own: some are told, one is half told, some are not begun with. So what became of a call is no
worse if an ordinary task fares so that is lost at the same step, or at another step in the same
way: with the same acknowledgement, and the same `worker_deduplicate_successful_tasks`. That a chord
waits though all its parts have a state is worse in any case but at the very same step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from celery import states
from faults.crash_cases import UNSTORED, Case
from faults.crash_run import Fate, Result

#: What can be wrong, in the words of the table.
STUCK = "stuck"
CHORD_STUCK = "chord waits for a call"
CHORD_FORGOTTEN = "chord waits for nothing"
LOST = "continuation lost"
TWICE = "run twice"
BOTH = "link and errback"
TOLD_TWICE = "told twice"
FAILED = "failed"

CONTINUED = ("link", "chain", "retry")
FAILING = ("fail", "fail here")


def wrongs_of(result: Result) -> set[str]:
    """Return what is wrong with the calls of a case, or with their chord."""
    found = set().union(*(_wrongs_of_call(result.case, fate) for fate in result.fates))
    if result.chord is not None:
        if result.chord not in states.READY_STATES:
            found.add(CHORD_STUCK if STUCK in found else CHORD_FORGOTTEN)
        found |= {TOLD_TWICE} if result.called_back > 1 else set()
    return found


def _wrongs_of_call(case: Case, fate: Fate) -> set[str]:
    succeeds = not case.mode.startswith("fail")
    is_lost = {
        states.SUCCESS: case.mode in CONTINUED and not fate.continued,
        states.FAILURE: case.mode in CONTINUED + FAILING and not fate.failed,
    }
    has_state = case.config.backend != "ignored"
    if not has_state:
        is_told = fate.failed or (fate.continued and succeeds)
        is_lost[fate.state] = case.mode in CONTINUED + FAILING and not is_told
    wrongs = {
        STUCK: has_state and fate.state not in states.READY_STATES,
        LOST: is_lost.get(fate.state, False),
        TWICE: fate.runs > (2 if case.mode == "retry" else 1),
        BOTH: fate.continued and fate.failed,
        TOLD_TWICE: fate.continued > 1 or fate.failed > 1,
        FAILED: succeeds and fate.state == states.FAILURE,
    }
    # An outcome that is told in two ways counts for more if it is a success that is stored.
    return {
        f"{wrong} ({fate.state})" if wrong == BOTH else wrong
        for wrong, is_so in wrongs.items()
        if is_so
    }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a batch, and what of that is worse than with ordinary tasks."""

    wrongs: frozenset[str]
    worse: frozenset[str]


class Judge:
    """Knows how ordinary tasks fare.

    Arguments:
        results: The results of all cases, also of ordinary tasks.
    """

    def __init__(self, results: Mapping[Case, Result]) -> None:
        self._results = results
        self._elsewhere: dict[object, set[str]] = {}
        for case, result in results.items():
            if case.kind == "plain":
                self._elsewhere.setdefault(_likeness(case), set()).update(wrongs_of(result))

    def judge(self, case: Case) -> Verdict:
        """Return the verdict on the case of a batch."""
        wrongs = wrongs_of(self._results[case])
        elsewhere = self._elsewhere[_likeness(case)] - {CHORD_FORGOTTEN}
        ordinary = wrongs_of(self._results[case.control()]) | elsewhere
        return Verdict(frozenset(wrongs), frozenset(wrongs - ordinary))


def _likeness(case: Case) -> object:
    config = case.config
    unstored = config.backend if config.backend in UNSTORED else ""
    return case.way, case.acks, config.dedup and case.acks != "early", unstored
