"""Faults at random, while messages are sent: a ledger says what became of each of them.

Environment variables: ``FAULTS`` is the number of faults for each broker. ``FAULTS_SEED`` makes
them the same again: which, and in what order; the moment of each is up to the machine too.
``FAULTS_KINDS`` are names of faults, with commas between them: only these then.
"""

import os
import time
from random import Random

import pytest
from faults.failover import Succession
from faults.fleet import Faults, Member, Sender, Tally
from faults.journal import Journal
from faults.ledger import Ledger, table
from harness import DEADLINE

FAULTS = int(os.environ.get("FAULTS", "8"))
KINDS = [kind.strip() for kind in os.environ.get("FAULTS_KINDS", "").split(",") if kind]
SEED = int(os.environ.get("FAULTS_SEED", "0")) or Random().randrange(1, 10**6)
#: Seconds after which Redis gives a message to another worker: longer than any is held here.
VISIBILITY_TIMEOUT = 12
#: Seconds that a worker, once it restores such messages, keeps others from it if it is killed then:
#: 300 by default. If it takes longer, what others have since got is restored once more.
RESTORING_TIMEOUT = 30
#: Seconds for which nothing may move at the end: what a worker is just taking from Redis looks like
#: what was lost on the wire.
STILL = 1
TASKS = ["early_small", "early_big", "late_small", "late_big", "plain_early", "plain_late"]
#: What is told of all of them, when one has gone wrong.
TOLD = {"fault", "broken", "cut", "killed", "stopping", "overdue", "connected"}
#: After which further reports a fault is injected.
MOMENTS = ["received", "flushed", "accepted", "run", "ended", "ack"]


@pytest.fixture
def reports():
    tally = Tally()
    yield tally
    tally.close()


@pytest.fixture
def site(deploy, private_broker):
    options = {"confirm_publish": True}
    is_redis = private_broker.url.startswith("redis")
    site = deploy(
        "ledger_app",
        private_broker.url,
        task_ignore_result=True,
        task_send_sent_event=False,
        worker_pool_restarts=True,
        broker_connection_max_retries=None,
    )
    if is_redis:
        options = {
            **site.config["broker_transport_options"],
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "unacked_mutex_expire": RESTORING_TIMEOUT,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
    configure(site, broker_transport_options=options)
    return site


def configure(site, **options):
    site.config.update(options)
    site.app.conf.update(options)
    with (site.directory / "celeryconfig.py").open("a") as config:
        config.writelines(f"{key} = {value!r}\n" for key, value in options.items())


class Broker:
    """What the broker itself knows of the messages."""

    def __init__(self, site, succession):
        self._site = site
        self._succession = succession
        self._is_redis = succession is not None

    def journal(self):
        if not self._is_redis:
            return None
        queue = self._site.queue
        return Journal(self._succession.commands(), f"{queue}:", queue)

    def on_the_wire(self):
        """What it took from the queue for a worker, and never had a word of from there."""
        journal = self.journal()
        return journal.of("popped") if journal else set()

    def left(self):
        """What it has; only in Redis also what workers have."""
        journal = self.journal()
        if journal:
            return journal.of("waiting") | journal.of("unacked")
        found = set()
        with self._site.app.connection_for_read() as connection:
            channel = connection.default_channel
            while message := channel.basic_get(self._site.queue, no_ack=False):
                found.add(message.headers["id"])
            # They go back when the connection is closed.
        return found

    def restore(self):
        """Have Redis deliver again what was not acknowledged in time, as any worker does.

        Those of older releases do it every 100 seconds only.
        """
        if self._is_redis:
            with self._site.app.connection_for_write() as connection:
                connection.default_channel.qos.restore_visible(num=None, interval=1)

    def is_empty(self):
        return not (self.left() if self._is_redis else self._site.messages_ready())


def settle(ledger_of, broker):
    """Wait until nothing is pending; return what is, if that does not happen."""
    deadline = time.monotonic() + DEADLINE + VISIBILITY_TIMEOUT + RESTORING_TIMEOUT
    wire, still_since = None, 0.0
    while (now := time.monotonic()) <= deadline:
        broker.restore()
        before, wire = wire, broker.on_the_wire()
        pending = ledger_of().pending() - wire
        if pending or not broker.is_empty() or wire != before:
            still_since = now
        elif now - still_since > STILL:
            return set()
    return pending


def run_without_faults(site, broker, sender, further):
    """Let all that is sent from now on be run while nothing is broken."""
    site.reports.wait_further("sent", further)
    sender.stop()
    return settle(lambda: Ledger(site.reports.items), broker)


@pytest.mark.timeout(120 + 40 * FAULTS)
def test_every_message_is_accounted_for_whatever_breaks(site, private_broker, totals):
    print(f"FAULTS_SEED={SEED}")
    random = Random(SEED)
    kind = private_broker.url.partition(":")[0]
    senders = (
        Sender(site, TASKS, Random(random.random()), pause=0.015, prefix=f"{part}-")
        for part in ("calm", "storm")
    )
    faults = Faults(site, private_broker, random, size=2)
    broker = Broker(site, faults.succession)
    sender = next(senders)
    sender.start()
    try:
        assert run_without_faults(site, broker, sender, 200) == set()
        site.reports.put({"event": "settled"})
        sender = next(senders)
        sender.start()
        for fault in plan(random, KINDS or faults.kinds):
            site.reports.wait_further(random.choice(MOMENTS), random.randint(1, 60))
            faults.inject(fault)
        faults.replace_ended()
        stuck = run_without_faults(site, broker, sender, 100)
        # Those that stop now have nothing left to do.
        assert set(faults.stop()) == {0}
    except BaseException:
        for member in faults.members:
            print(f"--- log of {member.worker.node}\n{member.worker.text}\n---")
        raise
    finally:
        faults.close()
        sender.stop()
    ledger = Ledger(site.reports.items)
    evidence = {"left": stuck | broker.left(), "on_the_wire": broker.on_the_wire()}
    rows = {f"{kind} {name}": row for name, row in sorted(ledger.totals(**evidence).items())}
    totals(rows, faults, SEED)
    print(*table(rows), faults.done, sep="\n")
    journal = broker.journal()
    assert journal is None or journal.pushed_twice == set()
    wrongs = ledger.wrongs(**evidence)
    print(*history(site.reports.items, wrongs), sep="\n")
    for pid in {d.worker for entries in wrongs.values() for e in entries for d in e.deliveries}:
        print(f"--- log of {pid}\n{faults.all[pid].worker.text}\n---")
    assert {wrong: len(entries) for wrong, entries in wrongs.items()} == {}
    assert sum(row.sent for row in rows.values()) > 300


def history(items, wrongs):
    """Return the reports of the messages of which something is wrong, and those of faults."""
    for wrong, entries in wrongs.items():
        for entry in entries[:3]:
            yield f"--- {wrong}: {entry}"
            keys = {r["key"] for r in items if r.get("number") == entry.number and "key" in r}
            for at, report in enumerate(items):
                mine = report.get("number") == entry.number or report.get("key") in keys
                if mine or keys.intersection(report.get("keys", ())) or report["event"] in TOLD:
                    yield f"{at} {report}"


def plan(random, each):
    """Return the kinds of faults to inject: each kind comes up before one comes up again."""
    kinds = []
    while len(kinds) < FAULTS:
        kinds += random.sample(each, len(each))
    return kinds[:FAULTS]


@pytest.mark.parametrize("private_broker", ["redis"], indirect=True)
@pytest.mark.parametrize("name", ["plain_late", "late_small"])
def test_redis_forgets_what_is_on_the_wire_of_any_task(name, site, private_broker):
    """What the ledger calls so is no fault of a batch task, and the worker cannot know of it."""
    broker = Broker(site, Succession(private_broker))
    member = Member(site, private_broker.url, "prefork")
    try:
        member.wait_until_ready()
        number = take_on_the_wire(site, broker, member, name)
        member.network.cut()
        member.network.thaw()
        member.wait_until_connected(2)
        site.app.tasks["plain_early"].apply_async(args=[0], task_id="the next")
        wait_until(lambda: broker.journal().states["the next"] == "acked")
        assert number not in {report["number"] for report in site.reports.of("received")}
        journal = broker.journal()
        assert journal.of("popped") == {number}
        assert journal.of("waiting") | journal.of("unacked") == set(), journal.states
    finally:
        member.close()


def wait_until(is_so):
    deadline = time.monotonic() + DEADLINE
    while not is_so():
        assert time.monotonic() < deadline


def take_on_the_wire(site, broker, member, name):
    """Have Redis answer with a message, and the network keep it; return its number."""
    for attempt in range(10):
        number = f"{name}-{attempt}"
        member.network.freeze()
        site.app.tasks[name].apply_async(args=[0], task_id=number)
        # A worker asks for messages for a second, and then again: it may just not have done so.
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            if broker.on_the_wire() == {number}:
                return number
        member.network.thaw()
        wait_until(lambda number=number: broker.journal().states[number] == "acked")
    raise AssertionError("The worker never waits for a message.")
