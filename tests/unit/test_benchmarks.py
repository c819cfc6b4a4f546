"""What the benchmarks reckon and print. Nothing here is timed."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import replace
from typing import Any

import cases
import enqueue
import processes
import pytest
import shortcuts
import stages
import tables
from environments import mixed
from hypothesis import given
from hypothesis import strategies as st
from run import parse, render, selected
from shortcuts import ratios
from summary import Spread, figures_of, percentile, rate_after, ratio, sizes, slope
from tails import Tail
from verdicts import Checkpoint, Phase, problems

from celery_batches.core.shortcuts import SHORTCUTS

TITLES = {peer: f"<{peer}>" for peer in cases.PEERS}


def run(case: str, peer: str, repeat: int = 0, **figures: float) -> dict[str, Any]:
    failure = "" if figures else "it broke\nTraceback"
    return {
        "case": case,
        "peer": peer,
        "repeat": repeat,
        "figures": figures,
        "sizes": {"100": 3, "7": 1},
        "failure": failure,
    }


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0.1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values, percent):
    found = percentile(values, percent)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= percent * len(values)
    assert 100 * sum(value < found for value in values) < percent * len(values)


def test_a_rate_counts_from_one_moment_to_another():
    bodies = [(9.0, 50), (11.0, 100), (12.0, 100)]
    assert rate_after(bodies, started=10.0, ended=14.0) == 50.0


@pytest.mark.parametrize(("bodies", "ended"), [([(9.0, 50)], 12.0), ([(11.0, 50)], 10.0)])
def test_there_is_no_rate_where_nothing_was_run(bodies, ended):
    with pytest.raises(ValueError, match="nothing was run"):
        rate_after(bodies, started=10.0, ended=ended)


@given(st.integers(-5, 5), st.integers(-100, 100))
def test_the_slope_of_a_line(growth, start):
    points = [(float(x), float(start + growth * x)) for x in range(10)]
    assert slope(points) == pytest.approx(growth)


def test_sizes_of_batches_are_counted_in_order():
    assert list(sizes([100, 7, 100]).items()) == [("7", 1), ("100", 2)]


def test_a_ratio_compares_runs_of_the_same_repeat():
    ours = {0: {"rate": 100.0}, 1: {"rate": 400.0}, 2: {"rate": 9.0}}
    theirs = {0: {"rate": 50.0}, 1: {"rate": 100.0}}
    assert ratio(ours, theirs, "rate") == Spread(3.0, 2.0, 4.0)


def test_the_smaller_is_the_better_for_what_is_spent():
    assert ratio({0: {"held": 100.0}}, {0: {"held": 150.0}}, "held") == Spread(1.5, 1.5, 1.5)


def test_there_is_no_ratio_without_both():
    assert ratio({0: {"rate": 1.0}}, {}, "rate") is None
    assert ratio({0: {"rate": 1.0}}, {0: {"p50": 1.0}}, "rate") is None


def test_runs_that_failed_have_no_figures():
    found = figures_of([run("a", "ours", rate=1.0), run("a", "ours", 1), run("a", "plain")])
    assert found == {("a", "ours"): {0: {"rate": 1.0}}}


def test_cases_have_names_of_their_own():
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)


def test_every_set_and_target_is_of_cases_that_exist():
    by_name = {case.name: case for case in cases.CASES}
    for name in cases.SETS:
        assert cases.select([name])
    for target in cases.TARGETS:
        assert {"ours", target.peer} <= set(by_name[target.case].peers)


def test_each_case_of_an_axis_differs_from_its_base_in_that_alone():
    base, results = cases.select(["redis-base", "redis-results"])
    assert replace(base, name=results.name, results=True, peers=results.peers) == results


def test_cases_are_selected_by_pattern_in_their_own_order():
    assert [case.name for case in cases.select(["scale-1*", "held"])] == [
        *("held", "scale-10k", "scale-100k", "scale-1m")
    ]
    with pytest.raises(LookupError, match="no case is called 'nonsense'"):
        cases.select(["held", "nonsense"])


def test_all_peers_may_hold_what_this_package_comes_to_by_itself():
    case = cases.Case("any", flush_every=100, concurrency=2)
    assert case.prefetch_multiplier("ours") == 4
    assert case.prefetch_multiplier("original") * 2 == (4 * 2 + 1) * 100
    assert replace(case, prefetch="default").prefetch_multiplier("original") == 4
    assert replace(case, prefetch="unlimited").prefetch_multiplier("ours") == 0


def test_options_limit_what_is_measured():
    line = ["--cases", "eta-50k", "--peers", "ours", "kombu", "--quick", "--messages", "500"]
    options = parse(line)
    (case,) = selected(options)
    assert (case.peers, case.messages, case.eta, options.repeats) == (("ours",), 500, 500, 1)


def test_peers_are_mixed_if_any_two_differ_in_what_they_have():
    one, other = {"python": "3.11", "celery": "5.7"}, {"python": "3.11", "celery": "5.6"}
    nothing = dict.fromkeys(["kombu", "amqp", "billiard", "vine", "redis"], "1")
    without = {"python": "3.11", "celery": None, **nothing}
    assert mixed({"a": {**one, **nothing}, "b": {**one, **nothing}, "c": without}) == {}
    assert mixed({"a": {**one, **nothing}, "b": {**other, **nothing}}) == {
        "celery": {"a": "5.7", "b": "5.6"}
    }


def test_a_table_has_columns_as_wide_as_what_is_in_them():
    assert tables.simple_table(["a", "long"], [["wide", "b"]]) == (
        "====  ====\na     long\n====  ====\nwide  b\n====  ===="
    )


def test_figures_have_their_median_and_their_spread():
    runs = [run("a", "ours", n, rate=1000.0 * (n + 1)) for n in range(3)] + [run("a", "plain")]
    lines = tables.main_table(runs, TITLES).splitlines()
    assert lines[1].split()[-1] == "messages/s"
    assert lines[3].split() == ["a", "<ours>", "2,000", "(1,000", "to", "3,000)"]
    assert lines[4].split() == ["a", "<plain>", "—"]


def test_targets_say_whether_they_are_reached():
    runs = [
        run("redis-base", "ours", rate=1300.0),
        run("redis-base", "original", rate=1000.0),
        run("held", "ours", held=200.0),
        run("held", "original", held=100.0),
    ]
    lines = tables.targets_table(runs, TITLES).splitlines()[3:-1]
    assert [line.split() for line in lines] == [
        ["redis-base", "<original>", "1.3", "1.30", "yes"],
        ["held", "<original>", "1.0", "0.50", "NO"],
    ]


def test_batch_sizes_of_all_repeats_are_added_up():
    runs = [run("a", "ours", n, rate=1.0) for n in range(2)]
    line = tables.sizes_table(runs, TITLES).splitlines()[3]
    assert line.split() == ["a", "<ours>", "8", "76.8", "100:", "75", "%,", "7:", "25", "%"]


def test_what_failed_is_told_and_not_left_out(tmp_path):
    text = render({"runs": [run("a", "ours", rate=1.0), run("a", "plain")]}, tmp_path)
    assert (tmp_path / "tables.rst").read_text() == text
    assert text.split("Failed\n------\n")[1].splitlines()[4].split() == [
        *("a", "plain", "Celery", "tasks", "0", "it", "broke")
    ]


def test_records_are_read_once_and_whole(tmp_path):
    record, path = struct.Struct("<dI"), tmp_path / "records"
    tail = Tail(path, record)
    assert tail.new() == []
    path.write_bytes(record.pack(1.0, 10) + record.pack(2.0, 20)[:5])
    assert tail.new() == [(1.0, 10)]
    path.write_bytes(record.pack(1.0, 10) + record.pack(2.0, 20))
    assert tail.new() == [(2.0, 20)]
    assert tail.new() == []


def checkpoint(title: str, *, idle: bool = True, **state: int) -> Checkpoint:
    return Checkpoint(title, idle, 0, 0, state)


def growing(by: float, *, warm_up: float = 0.0) -> Phase:
    """A phase in which memory grows by so many bytes for each message, after it has jumped."""
    phase = Phase("small", 1000, seconds=1.0)
    phase.samples = [
        (float(done), 1e6 + by * done + (warm_up if done > 100 else 0))
        for done in range(0, 1001, 50)
    ]
    return phase


def test_what_a_worker_keeps_when_it_is_idle_is_a_problem():
    checkpoints = [
        checkpoint("warm", timers=3, requests=0),
        checkpoint("waiting", idle=False, timers=900, requests=900),
        checkpoint("end", timers=4, requests=0),
    ]
    assert problems([], checkpoints, bound=None) == ["end: timers went from 3 to 4"]


@pytest.mark.parametrize(("by", "found"), [(0.0, 0), (3.9, 0), (4.1, 1)])
def test_memory_that_grows_with_each_message_is_a_problem(by, found):
    # What it takes to get warm is not.
    phases = [growing(by, warm_up=1e6)]
    assert len(problems(phases, [checkpoint("warm")], bound=4.0)) == found
    assert problems(phases, [checkpoint("warm")], bound=None) == []


@pytest.mark.parametrize(("again", "found"), [(1.0, 0), (1.04, 0), (1.06, 1)])
def test_the_same_backlog_again_must_not_need_more(again, found):
    piles = [Phase("ETA", 10, piles_up=True, seconds=1.0) for _ in range(2)]
    piles[0].samples = [(0.0, 1e6), (10.0, 2e6)]
    piles[1].samples = [(0.0, 1e6), (10.0, again * 2e6)]
    assert len(problems(piles, [checkpoint("warm")], bound=4.0)) == found


def test_the_process_that_listens_at_a_port_is_found() -> None:
    """It is this one, as long as it listens; one that is only connected is not meant."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert processes.server_at(port) == os.getpid()
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert processes.server_at(client.getsockname()[1]) is None
    assert processes.server_at(port) is None


def test_a_shortcut_is_measured_in_turns_that_have_both():
    """A turn in which one of the two runs failed says nothing."""
    found = [
        {"": {"rate": 100.0, "main_cpu": 2.0}, "amqp_acks": {"rate": 50.0, "main_cpu": 3.0}},
        {"": {"rate": 100.0, "main_cpu": 2.0}},
        {"amqp_acks": {"rate": 1.0, "main_cpu": 1.0}},
        {"": {"rate": 50.0, "main_cpu": 2.0}, "amqp_acks": {"rate": 50.0, "main_cpu": 2.0}},
    ]
    assert ratios(found, "amqp_acks") == {
        "rate": Spread(0.75, 0.5, 1.0),
        "main_cpu": Spread(1.25, 1.0, 1.5),
    }
    assert ratios(found, "redis_acks") == {}


def test_each_shortcut_has_cases_in_which_it_is_measured():
    # What a client does is measured by `enqueue.py`.
    of_clients = enqueue.BULK | {"message_templates"}
    assert set(shortcuts.CASES) | of_clients == SHORTCUTS
    for name in {case for names in shortcuts.CASES.values() for case in names}:
        case = shortcuts.find_case(name, 7)
        assert (case.name, case.messages, case.without) == (name, 7, "")


def test_returning_beside_marking() -> None:
    """The least of each way and their ratio, and the median of the pairs that took turns."""
    runs = {"mark": [2e-6, 4e-6, 8e-6], "return": [3e-6, 4e-6, 4e-6]}
    timed = {way: [{"run": seconds} for seconds in found] for way, found in runs.items()}
    assert stages.ways([{"ways": {"Redis": timed}}]) == (
        "Redis: marked 2.00 µs, returned 3.00 µs, ratio 1.500 (median of 3 pairs 1.000)"
    )


@pytest.mark.redis
def test_each_way_to_send_is_measured(redis_url, monkeypatch, capsys):
    """With a few calls; the queue is deleted."""
    monkeypatch.setenv("TEST_REDIS_URL", redis_url)
    assert enqueue.main(["--brokers", "redis", "--calls", "5", "--turns", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    found = [line.split("  ")[1].strip() for line in printed if line.startswith("redis")]
    assert len(found) == 6
