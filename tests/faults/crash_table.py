"""The tables of what became of batches, and of ordinary tasks beside them. Pure."""

from collections.abc import Iterable, Iterator, Mapping

from faults.crash_cases import ACKS, STEPS, WAYS, Case, Step
from faults.crash_judge import (
    BOTH,
    CHORD_FORGOTTEN,
    LOST,
    STUCK,
    TOLD_TWICE,
    TWICE,
    Judge,
    wrongs_of,
)
from faults.crash_run import Result

HEADINGS = {
    "chords wait": (CHORD_FORGOTTEN,),
    "no state": (STUCK,),
    "not continued": (LOST,),
    "run again": (TWICE,),
    "told twice": (TOLD_TWICE,),
    "link and errback": (BOTH,),
}


def by_way(results: Mapping[Case, Result]) -> Iterator[list[str]]:
    """Yield a row for each way and acknowledgement: in how many cases what came about.

    The first number is of batches, and the second of ordinary tasks.
    """
    yield ["Lost", "acks", "cases", *HEADINGS, "worse"]
    judge = Judge(results)
    for way in WAYS:
        for acks in ACKS:
            mine = [c for c in results if (c.way, c.acks, c.kind) == (way, acks, "batch")]
            if mine:
                pairs = (_pair(mine, results, wrongs) for wrongs in HEADINGS.values())
                worse = sum(bool(judge.judge(case).worse) for case in mine)
                yield [way, acks, str(len(mine)), *pairs, str(worse)]


def _pair(cases: list[Case], results: Mapping[Case, Result], wrongs: tuple[str, ...]) -> str:
    batches = sum(_has(results[case], wrongs) for case in cases)
    controls = sum(_has(results[case.control()], wrongs) for case in cases)
    return f"{batches} / {controls}"


def _has(result: Result, wrongs: tuple[str, ...]) -> bool:
    return any(found.startswith(wrongs) for found in wrongs_of(result))


def by_step(results: Mapping[Case, Result]) -> Iterator[list[str]]:
    """Yield a row for each step: in how many cases it was lost there, and how many were worse."""
    yield ["Step", *WAYS]
    judge = Judge(results)
    for step in STEPS:
        yield [step.name, *(_cell(step, way, results, judge) for way in WAYS)]


def _cell(step: Step, way: str, results: Mapping[Case, Result], judge: Judge) -> str:
    cases = [c for c in results if c.kind == "batch" and c.way == way and c.point in step.points]
    worse = sum(bool(judge.judge(case).worse) for case in cases)
    return f"{len(cases)}, {worse} worse" if worse else str(len(cases))


def columns(rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield each row as a line of text."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def account(result: Result) -> str:
    """Return a line on what became of each call of a case, equal ones together."""
    fates = [
        f"{f.runs} runs, {f.state}, link {f.continued}, errback {f.failed}" for f in result.fates
    ]
    counted = [f"{fates.count(fate)} x ({fate})" for fate in dict.fromkeys(fates)]
    chord = [f"chord {result.chord}, called back {result.called_back}"] * (result.chord is not None)
    return "; ".join([*counted, *chord])
