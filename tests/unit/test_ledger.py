"""The ledger of the fault tests: every verdict can come about, and the journal of Redis is read."""

import json

import pytest
from faults.journal import Journal, read_commands
from faults.ledger import WRONGS, Ledger, Totals, table

#: Two workers.
W, V = 100, 200


def event(event, /, **facts):
    return {"event": event, **facts}


START = [event("connected", worker=W), event("connected", worker=V)]
SETTLED = event("settled")


def sent(mode="early"):
    return [event("sending", number="1", name="task", mode=mode), event("sent", number="1")]


def received(key="k", worker=W, *, redelivered=False):
    return event("received", worker=worker, key=key, number="1", redelivered=redelivered)


def begun(key="k", pid=101):
    """Early: acknowledged when the pool starts on it."""
    return [*accepted(key, pid), event("ack", key=key)]


def accepted(key="k", pid=101):
    return [
        event("flushed", keys=[key]),
        event("run", keys=[key]),
        event("accepted", key=key, pid=pid),
    ]


def ended(key="k"):
    return event("ended", keys=[key])


def early(key="k"):
    return [*begun(key), ended(key)]


def late(key="k"):
    return [*accepted(key), ended(key), event("ack", key=key)]


def judge(*reports, **evidence):
    """Return what the totals of one message have, without how it was sent."""
    ledger = Ledger([*START, *reports])
    totals = ledger.totals(**evidence)["task"]
    found = {name: count for name in Totals.__slots__ if (count := getattr(totals, name))}
    wrongs = {name: len(entries) for name, entries in ledger.wrongs(**evidence).items()}
    assert wrongs == {name: found[name] for name in WRONGS if name in found}
    assert all(found.values())
    found.pop("sent", None)
    return set(found)


@pytest.mark.parametrize(("mode", "run"), [("early", early), ("late", late)])
def test_a_message_that_is_run_once_is_that_and_nothing_else(mode, run):
    assert judge(*sent(mode), received(), *run()) == {"once"}
    assert judge(*sent(mode), received(), *run(), SETTLED) == {"once"}


@pytest.mark.parametrize("mode", ["early", "late"])
def test_a_message_that_nobody_has_is_lost(mode):
    assert judge(*sent(mode)) == {"lost"}
    assert judge(*sent(mode), received()) == {"lost"}
    assert judge(*sent(mode), received(), *accepted()) == {"lost"}


@pytest.mark.parametrize("mode", ["early", "late"])
def test_a_message_that_was_not_confirmed_cannot_be_lost_but_run_twice(mode):
    doubtful = sent(mode)[:1]
    assert judge(*doubtful) == {"in_doubt"}
    assert judge(*doubtful, received(), *accepted(), ended(), *accepted(), ended()) == {
        "in_doubt",
        "twice",
    }


@pytest.mark.parametrize("mode", ["early", "late"])
def test_a_message_that_is_left_is_stuck(mode):
    assert judge(*sent(mode), left={"1"}) == {"stuck"}
    assert judge(*sent(mode), received(), left={"1"}) == {"stuck"}


def test_a_message_of_which_there_is_proof_that_no_worker_had_it_is_on_the_wire():
    assert judge(*sent(), on_the_wire={"1"}) == {"on_the_wire"}


@pytest.mark.parametrize("killed", [101, W])
def test_an_early_message_may_be_cut_off_by_what_kills_who_began_with_it(killed):
    kill = event("killed", pids=[killed])
    assert judge(*sent(), received(), *begun(), kill) == {"cut_off"}
    unheard = [event("flushed", keys=["k"]), event("accepted", key="k", pid=101)]
    assert judge(*sent(), received(), *unheard, kill) == {"cut_off"}


def test_a_message_that_had_settled_is_not_cut_off():
    kill = event("killed", pids=[W, 101])
    assert judge(*sent(), received(), *begun(), SETTLED, kill) == {"lost"}


def test_a_message_that_nobody_had_begun_with_is_not_cut_off():
    kill = event("killed", pids=[W, 101])
    assert judge(*sent(), received(), event("flushed", keys=["k"]), kill) == {"lost"}


def test_a_late_message_is_not_cut_off():
    kill = event("killed", pids=[W, 101])
    assert judge(*sent("late"), received(), *accepted(), kill) == {"lost"}


def test_who_was_killed_is_not_blamed_for_the_messages_of_others():
    kill = event("killed", pids=[V, 201])
    assert judge(*sent(), received(), *begun(), kill) == {"lost"}


REASONS = {
    "the connection was cut": [event("cut", worker=W)],
    "the worker has another connection": [event("connected", worker=W)],
    "the broker was broken": [event("broken")],
    "the worker was killed": [event("killed", pids=[W])],
    "it was sent back": [event("requeued", key="k")],
    "the worker takes long to stop": [event("stopping", worker=W), event("overdue", worker=W)],
}


@pytest.mark.parametrize("reason", REASONS.values(), ids=REASONS)
@pytest.mark.parametrize(("mode", "run"), [("early", early), ("late", late)])
def test_a_message_is_run_again_with_reason(mode, run, reason):
    again = [received("l", V, redelivered=True), *run("l")]
    assert judge(*sent(mode), received(), *run(), *reason, *again) == {"again"}
    assert judge(*sent(mode), received(), *run(), SETTLED, *reason, *again) == {"twice"}


NO_REASONS = {
    "none": [],
    "another worker's connection was cut": [event("cut", worker=V)],
    "another worker was killed": [event("killed", pids=[V])],
    "a pool process was killed": [event("killed", pids=[101])],
    "its worker stops, when it is done": [event("stopping", worker=W)],
    "another worker takes long to stop": [event("overdue", worker=V)],
}


@pytest.mark.parametrize("reason", NO_REASONS.values(), ids=NO_REASONS)
@pytest.mark.parametrize(("mode", "run"), [("early", early), ("late", late)])
def test_a_message_is_run_twice_without_reason(mode, run, reason):
    again = [received("l", V, redelivered=True), *run("l")]
    assert judge(*sent(mode), received(), *run(), *reason, *again) == {"twice"}


def test_a_worker_that_stops_may_send_back_what_it_has_not_run():
    back = [event("stopping", worker=W), received("l", V, redelivered=True), *early("l")]
    assert judge(*sent(), received(), *back) == {"once"}
    assert judge(*sent(), received(), *back, *accepted(), ended()) == {"twice"}


def test_a_worker_that_stops_may_not_know_that_its_pool_has_begun():
    begun = [event("run", keys=["k"]), event("stopping", worker=W), ended()]
    again = [received("l", V, redelivered=True), *late("l")]
    assert judge(*sent("late"), received(), *begun, *again) == {"again"}
    told = [event("accepted", key="k", pid=101), *begun]
    assert judge(*sent("late"), received(), *told, *again) == {"twice"}


def test_a_message_that_the_broker_does_not_know_it_has_delivered_was_not_delivered_again():
    again = [received("l", V), *early("l")]
    cut = event("cut", worker=W)
    assert judge(*sent(), received(), *early(), cut, *again) == {"twice"}
    assert judge(*sent(), received(), *early(), event("broken"), *again) == {"again"}


def test_each_run_needs_a_delivery_of_its_own():
    assert judge(*sent(), received(), *early(), *accepted(), ended()) == {"twice"}
    cut = event("cut", worker=W)
    again = [received("l", V, redelivered=True), *early("l"), *accepted("l")]
    assert judge(*sent(), received(), *early(), cut, *again) == {"twice"}


@pytest.mark.parametrize(("mode", "run"), [("early", early), ("late", late)])
def test_a_batch_of_a_connection_that_is_over_is_stale(mode, run):
    reconnected = event("connected", worker=W)
    again = [received("l", redelivered=True), *run("l")]
    assert judge(*sent(mode), received(), reconnected, *run()) == {"once", "stale"}
    assert judge(*sent(mode), received(), reconnected, *again, *run()) == {"again", "stale"}


def test_an_acknowledgement_before_it_is_due_is_too_soon():
    ack = event("ack", key="k")
    assert judge(*sent(), received(), ack, *accepted(), ended()) == {"once", "too_soon"}
    assert judge(*sent("late"), received(), *begun(), ended()) == {"once", "too_soon"}


def test_pending_is_what_is_not_acknowledged():
    reports = [*START, *sent()]
    assert Ledger(reports).pending() == {"1"}
    reports.append(received())
    assert Ledger(reports).pending() == {"1"}
    reports += early()
    assert Ledger(reports).pending() == set()
    reports.append(received("l", V, redelivered=True))
    assert Ledger(reports).pending() == {"1"}
    assert Ledger([*START, *sent()[:1]]).pending() == set()


def test_a_number_is_sent_once():
    with pytest.raises(AssertionError, match="1 is sent twice"):
        Ledger([*sent(), *sent()])


def test_the_table_has_a_row_for_each_and_their_sum():
    lines = table({"here": Totals(sent=2, lost=1), "there": Totals(sent=3, once=3)})
    assert [line.split() for line in lines[1:]] == [
        ["here", *"20000001000"],
        ["there", *"30300000000"],
        ["together", *"50300001000"],
    ]


# The journal.


def payload(number):
    return json.dumps({"headers": {"id": number}, "properties": {}}).encode()


def journal(*commands):
    return Journal(iter([list(command) for command in commands]), "p:", "q")


PUSH = [b"LPUSH", b"p:q", payload("1")]
POP = [b"RPOP", b"p:q"]
NOTE = [b"HSET", b"p:unacked", b"tag", json.dumps([json.loads(payload("1")), "q", "q"]).encode()]
TAKE = [b"HDEL", b"p:unacked", b"tag"]
RESTORE = [[b"MULTI"], TAKE, [b"RPUSH", b"p:q", payload("1")], [b"EXEC"]]
ACK = [[b"MULTI"], [b"ZREM", b"p:unacked_index", b"tag"], TAKE, [b"EXEC"]]


def test_the_journal_knows_where_a_message_is():
    commands = []
    states = []
    for step in ([PUSH], [POP], [NOTE], RESTORE, [POP], [NOTE], ACK):
        commands += step
        states.append(journal(*commands).states["1"])
    assert states == ["waiting", "popped", "unacked", "waiting", "popped", "unacked", "acked"]
    assert journal(*commands).pushed_twice == set()
    assert journal(*commands).of("acked") == {"1"}


def test_the_journal_keeps_the_order_of_lists():
    other = [b"LPUSH", b"p:q", payload("2")]
    assert journal(PUSH, other, POP).of("popped") == {"1"}
    assert journal(PUSH, [b"RPUSH", *other[1:]], POP).of("popped") == {"2"}


def test_the_journal_passes_over_what_is_of_others():
    others = [[b"LPUSH", b"x:q", payload("3")], [b"RPOP", b"x:q"], [b"HDEL", b"x:unacked", b"t"]]
    assert journal(*others, [b"HSET", b"x", b"y", b"z"], [b"SELECT", b"0"]).states == {}


@pytest.mark.parametrize("before", [[PUSH], [PUSH, POP], [PUSH, POP, NOTE, *ACK]])
def test_the_journal_sees_what_is_pushed_twice(before):
    assert journal(*before, PUSH).pushed_twice == {"1"}


def test_the_journal_is_read_from_the_file_of_redis(tmp_path):
    directory = tmp_path / "appendonlydir"
    directory.mkdir()
    (directory / "appendonly.aof.1.base.rdb").write_bytes(b"REDIS0010")
    written = b"*2\r\n$4\r\nRPOP\r\n$3\r\np:q\r\n*1\r\n$5\r\na\r\nbc\r\n"
    (directory / "appendonly.aof.1.incr.aof").write_bytes(written)
    assert list(read_commands(tmp_path)) == [POP, [b"a\r\nbc"]]


def test_the_journal_leaves_out_what_redis_is_still_writing(tmp_path):
    directory = tmp_path / "appendonlydir"
    directory.mkdir()
    written = b"*2\r\n$4\r\nRPOP\r\n$3\r\np:q\r\n"
    for length in range(len(written)):
        file = directory / "appendonly.aof.1.incr.aof"
        file.write_bytes(written + written[:length])
        assert list(read_commands(tmp_path)) == [POP], length
