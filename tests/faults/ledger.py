"""What became of each message: an account made of reports. Pure: no broker, no clock, no I/O.

The reports come from the test (what it sends, and what it breaks) and from the workers. Each is a
dict; they are noted in the order in which they came:

=============  ===============================  ==================================================
``event``      with                             says
=============  ===============================  ==================================================
``sending``    ``number``, ``name``, ``mode``   the test is about to send a message
``sent``       ``number``                       the broker has confirmed that it has it
``settled``                                     nothing is pending, and nothing was broken yet
``broken``                                      the broker is stopped or killed now
``cut``        ``worker``                       the connections of a worker are closed now
``stopping``   ``worker``                       a worker is told to stop when it is done
``overdue``    ``worker``                       it has been stopping for so long that the broker may
                                                deliver again what it has
``killed``     ``pids``                         these processes are ended at once, now
``connected``  ``worker``                       a worker has a new connection, and that only
``received``   ``worker``, ``key``, ``number``  a worker has a message: `key` is the delivery's
``flushed``    ``keys``                         a worker sends a batch to its pool
``accepted``   ``key``, ``pid``                 the pool has started on it
``run``        ``keys``                         the body begins
``ended``      ``keys``                         the body ends
``ack``        ``key``                          a worker acknowledges the delivery
``requeued``   ``key``                          a worker sends it back to the broker
=============  ===============================  ==================================================

``received`` also says whether the message was ``redelivered``, according to the broker.

What the mode of a task promises, and so what is held against it:

``early``
    Acknowledged when the pool starts on it. It may not be run at all if the process that started on
    it, or its worker, is killed then. It may be run twice only if the acknowledgement did not reach
    the broker, which then delivers it again.
``late``
    Acknowledged when the body has ended. It is run to the end once or more.
both
    What has settled before the first fault, exactly once.

A run is again with reason only if the message was delivered again with reason: the worker that had
it lost its connection or was killed, has sent it back, was told to stop before it knew that the
pool had begun with it, or took too long to stop.
"""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Delivery:
    """One time that a worker got a message."""

    worker: int
    #: Which of its connections it came by.
    connection: int
    #: Whether there was a reason to deliver the message again; the first time there is.
    reason: bool = True
    #: By which connection the worker was connected when it was sent to the pool, each time.
    flushed: list[int] = field(default_factory=list)
    #: The processes of the pool that started on it.
    pids: list[int] = field(default_factory=list)
    runs: int = 0
    ends: int = 0
    acks: int = 0
    requeued: bool = False
    too_soon: bool = False


@dataclass(slots=True)
class Entry:
    """One message."""

    number: str
    name: str
    mode: str
    #: Whether it was over before anything was broken.
    calm: bool = False
    sent: bool = False
    #: How often the broker had been broken when it was delivered last.
    broken: int = 0
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def runs(self) -> int:
        return sum(delivery.runs for delivery in self.deliveries)

    @property
    def ends(self) -> int:
        return sum(delivery.ends for delivery in self.deliveries)


@dataclass(slots=True)
class Totals:
    """Numbers of messages."""

    #: The broker has confirmed that it has them.
    sent: int = 0
    #: The broker was gone before it could say so: they may be there or not.
    in_doubt: int = 0
    #: Run and not only begun, once.
    once: int = 0
    #: Run twice or more, with reason.
    again: int = 0
    #: Never run, or not to the end: early acks, and the process or worker was killed.
    cut_off: int = 0
    #: Taken from the queue by Redis for a worker, and never had by one.
    on_the_wire: int = 0
    #: Run twice without reason.
    twice: int = 0
    #: Never run to the end, without reason.
    lost: int = 0
    #: Still with the broker, or with a worker that does not run it.
    stuck: int = 0
    #: Sent to the pool by a worker whose connection, the one they came by, was over.
    stale: int = 0
    #: Acknowledged before it was due.
    too_soon: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(mine + getattr(other, name) for name, mine in asdict(self).items()))


#: What must not be.
WRONGS = ("twice", "lost", "stuck", "stale", "too_soon")


class Ledger:
    """An account of every message, from all reports so far."""

    def __init__(self, reports: Iterable[dict[str, Any]] = ()) -> None:
        self.entries: dict[str, Entry] = {}
        self._deliveries: dict[str, tuple[Entry, Delivery]] = {}
        self._connections: dict[int, int] = {}
        #: Connections that were taken from their workers, which may not know it yet.
        self._lost: set[tuple[int, int]] = set()
        self._stopping: set[int] = set()
        self._overdue: set[int] = set()
        self._killed: set[int] = set()
        self._broken = 0
        for report in reports:
            self.note(report)

    def note(self, report: dict[str, Any]) -> None:
        """Take in one report; events that mean nothing here are passed over."""
        note = getattr(self, f"_note_{report['event']}", None)
        if note is not None:
            note(report)

    def _note_sending(self, report: dict[str, Any]) -> None:
        number = report["number"]
        assert number not in self.entries, f"{number} is sent twice"
        self.entries[number] = Entry(number, report["name"], report["mode"])

    def _note_sent(self, report: dict[str, Any]) -> None:
        self.entries[report["number"]].sent = True

    def _note_settled(self, report: dict[str, Any]) -> None:
        for entry in self.entries.values():
            entry.calm = True

    def _note_broken(self, report: dict[str, Any]) -> None:
        self._broken += 1
        self._lost.update(self._connections.items())

    def _note_cut(self, report: dict[str, Any]) -> None:
        worker = report["worker"]
        self._lost.add((worker, self._connections[worker]))

    def _note_stopping(self, report: dict[str, Any]) -> None:
        self._stopping.add(report["worker"])

    def _note_overdue(self, report: dict[str, Any]) -> None:
        self._overdue.add(report["worker"])

    def _note_killed(self, report: dict[str, Any]) -> None:
        self._killed.update(report["pids"])

    def _note_connected(self, report: dict[str, Any]) -> None:
        worker = report["worker"]
        self._connections[worker] = self._connections.get(worker, 0) + 1

    def _note_received(self, report: dict[str, Any]) -> None:
        entry = self.entries[report["number"]]
        delivery = Delivery(report["worker"], self._connections[report["worker"]])
        if entry.deliveries:
            # A broker that was broken may not know any more that it had delivered it.
            known = report["redelivered"] or entry.broken != self._broken
            delivery.reason = known and all(map(self._is_given_up, entry.deliveries))
        entry.broken = self._broken
        entry.deliveries.append(delivery)
        self._deliveries[report["key"]] = entry, delivery

    def _is_given_up(self, delivery: Delivery) -> bool:
        """Whether there is a reason to deliver to somebody else what was delivered here."""
        # Celery cancels what it has not yet heard of that the pool has begun with it.
        begun = delivery.runs and delivery.pids
        stopping = delivery.worker in self._stopping and not begun
        overdue = delivery.worker in self._overdue
        return delivery.requeued or stopping or overdue or self._is_taken_away(delivery)

    def _is_taken_away(self, delivery: Delivery) -> bool:
        """Whether the worker could not keep it: it may not even know that, and run it."""
        return (
            delivery.worker in self._killed
            or (delivery.worker, delivery.connection) in self._lost
            or delivery.connection != self._connections[delivery.worker]
        )

    def _note_flushed(self, report: dict[str, Any]) -> None:
        for key in report["keys"]:
            _, delivery = self._deliveries[key]
            delivery.flushed.append(self._connections[delivery.worker])

    def _note_accepted(self, report: dict[str, Any]) -> None:
        self._deliveries[report["key"]][1].pids.append(report["pid"])

    def _note_run(self, report: dict[str, Any]) -> None:
        for key in report["keys"]:
            entry, delivery = self._deliveries[key]
            delivery.runs += 1
            if entry.deliveries[-1] is not delivery and not self._is_taken_away(delivery):
                delivery.reason = False  # It is somebody else's, and was given back by this one.

    def _note_ended(self, report: dict[str, Any]) -> None:
        for key in report["keys"]:
            self._deliveries[key][1].ends += 1

    def _note_ack(self, report: dict[str, Any]) -> None:
        entry, delivery = self._deliveries[report["key"]]
        delivery.acks += 1
        due = delivery.pids if entry.mode == "early" else delivery.ends
        delivery.too_soon |= not due

    def _note_requeued(self, report: dict[str, Any]) -> None:
        self._deliveries[report["key"]][1].requeued = True

    def pending(self) -> set[str]:
        """Return what is not acknowledged by the last who had it, or what nobody had yet."""
        return {
            number
            for number, entry in self.entries.items()
            if (entry.sent or entry.deliveries) and not self._is_settled(entry)
        }

    def _is_settled(self, entry: Entry) -> bool:
        return bool(entry.deliveries) and entry.deliveries[-1].acks > 0

    def judge(
        self, entry: Entry, *, left: Collection[str] = (), on_the_wire: Collection[str] = ()
    ) -> Totals:
        """Return a 1 for everything that is true of one message.

        Arguments:
            entry: The message.
            left: The numbers of messages that are still somewhere where they should not be.
            on_the_wire: The numbers of messages that the broker has taken from the queue, of which
                there is proof that no worker had them.
        """
        number = entry.number
        stuck = number in left
        wire = number in on_the_wire
        cut_off = not entry.calm and entry.mode == "early" and self._is_cut_off(entry)
        lost = entry.sent and not (entry.ends or stuck or wire or cut_off)
        again = entry.runs > 1
        twice = again and (entry.calm or not self._is_again_with_reason(entry))
        return Totals(
            sent=entry.sent,
            in_doubt=not entry.sent,
            once=entry.runs == 1 and entry.ends == 1,
            again=again and not twice,
            cut_off=cut_off,
            on_the_wire=wire,
            twice=twice,
            lost=lost,
            stuck=stuck,
            stale=any(
                at != delivery.connection
                for delivery in entry.deliveries
                for at in delivery.flushed
            ),
            too_soon=any(delivery.too_soon for delivery in entry.deliveries),
        )

    def _is_cut_off(self, entry: Entry) -> bool:
        """Whether it was not run to the end, and who had begun with it was killed."""
        return not entry.ends and any(
            self._killed.intersection([*delivery.pids, delivery.worker])
            for delivery in entry.deliveries
            if delivery.pids
        )

    def _is_again_with_reason(self, entry: Entry) -> bool:
        """Whether each run was of a delivery of its own, and each of these had its reason."""
        ran = [delivery for delivery in entry.deliveries if delivery.runs]
        return all(delivery.runs == 1 and delivery.reason for delivery in ran)

    def totals(
        self, *, left: Collection[str] = (), on_the_wire: Collection[str] = ()
    ) -> dict[str, Totals]:
        """Return the totals for each name of task."""
        found: dict[str, Totals] = {}
        for entry in self.entries.values():
            judged = self.judge(entry, left=left, on_the_wire=on_the_wire)
            found[entry.name] = found.get(entry.name, Totals()) + judged
        return found

    def wrongs(
        self, *, left: Collection[str] = (), on_the_wire: Collection[str] = ()
    ) -> dict[str, list[Entry]]:
        """Return the messages of which something is true that must not be, by what that is."""
        wrongs: dict[str, list[Entry]] = {}
        for entry in self.entries.values():
            judged = self.judge(entry, left=left, on_the_wire=on_the_wire)
            for name in WRONGS:
                if getattr(judged, name):
                    wrongs.setdefault(name, []).append(entry)
        return wrongs


def _is_stale(delivery: Delivery) -> bool:
    return any(connection != delivery.connection for connection in delivery.flushed)


def table(rows: dict[str, Totals]) -> list[str]:
    """Return the lines of a table with one row for each, and their sum."""
    names = [each.name for each in fields(Totals)]
    everything = sum(rows.values(), Totals())
    lines = [" ".join([f"{'':24}", *(f"{name.replace('_', ' '):>11}" for name in names)])]
    for title, totals in {**rows, "together": everything}.items():
        lines.append(" ".join([f"{title:24}", *(f"{getattr(totals, n):>11}" for n in names)]))
    return lines
