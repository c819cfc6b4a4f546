"""Several workers on one queue, each on a network of its own; and who sends to them meanwhile."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread, Timer

from faults.failover import Succession
from faults.proxy import Proxy
from harness import DEADLINE, Reports, Worker
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid

#: How a worker ends, of whatever tasks, that has unacknowledged messages when Redis goes away, and
#: hears of it from another connection than the one that waits for messages (kombu 5.7): its channel
#: is closed twice, and the second time has no connection to send the messages back by.
KNOWN_END = "Unrecoverable error: AttributeError(\"'NoneType' object has no attribute 'hostname'\")"

#: Where a worker hangs, of whatever tasks, that writes to RabbitMQ when it is sent SIGQUIT: the
#: handler of the signal (Celery 5.7) writes too, and py-amqp has it wait for the first to be done.
KNOWN_HANG = r"^ *with buffer_lock:$"


#: Seconds after which a worker that stops is overdue: Redis may deliver again what it has. Celery
#: acknowledges what has just ended when the pool has stopped, and that takes half a minute if the
#: main process is told to stop before it knows that a task was accepted (see `wait_until_active`).
LONG_STOP = 6

#: How often a call with poison ends its process.
LIVES = 3


class Tally(Reports):
    """Reports that are counted as they come, for there are many."""

    def __init__(self):
        self.counts = {}
        super().__init__()

    def put(self, item):
        with self._changed:
            self.counts[item["event"]] = self.counts.get(item["event"], 0) + 1
            super().put(item)

    def count(self, event):
        with self._changed:
            return self.counts.get(event, 0)

    def wait_further(self, event, further):
        """Wait until there are so many more reports of an event than now."""
        self.wait_until(event, self.count(event) + further)

    def wait_until(self, event, wanted):
        """Wait until there are so many reports of an event."""
        self.wait(lambda items: self.counts.get(event, 0), wanted, what=f"reports of {event!r}")


class Member:
    """A worker and the network between it and the broker."""

    def __init__(self, site, url, pool):
        self.network = Proxy(url)
        self.network.__enter__()
        self.reports = site.reports
        node = f"{uuid()[:8]}@test"
        command = [sys.executable, "-m", "celery", "-A", site.name, "worker", "-P", pool]
        command += ["-n", node, "-c", "2", "-l", "INFO", "--without-gossip", "--without-mingle"]
        env = {
            **os.environ,
            "C_FORCE_ROOT": "1",
            "CELERY_BROKER_URL": self.network.url,
            "PYTHONUNBUFFERED": "1",
            "REPORTS": site.reports.path,
        }
        self.worker = Worker(command, site.directory, env, node)
        self.pid = self.worker.process.pid

    def wait_until_ready(self):
        self.worker.wait_for_log(r" ready\.")

    def connections(self):
        return sum(report["worker"] == self.pid for report in self.reports.of("connected"))

    def wait_until_connected(self, connections):
        """Wait until it has had so many connections, or has ended."""

        def count(items):
            ended = self.worker.process.poll() is not None
            return connections if ended else self.connections()

        self.reports.wait(count, connections, what=f"connections of {self.worker.node}")

    def processes(self):
        """The processes of its pool."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def stop(self):
        """Warm shutdown; returns the exit code."""
        self.reports.put({"event": "stopping", "worker": self.pid})
        overdue = Timer(LONG_STOP, self.reports.put, [{"event": "overdue", "worker": self.pid}])
        overdue.start()
        try:
            return self.worker.stop()
        finally:
            overdue.cancel()
            self.network.__exit__(None, None, None)

    def kill(self):
        """End it at once, with its pool."""
        self.reports.put({"event": "killed", "pids": [self.pid, *self.processes()]})
        self.close()

    def close(self):
        self.worker.kill()
        self.network.__exit__(None, None, None)


class Sender(Thread):
    """Sends messages, until it is stopped, over a connection of its own that nobody cuts.

    A message is sent once. While the broker is away, whether it got there is in doubt.
    """

    def __init__(self, site, tasks, random, *, pause, prefix):
        super().__init__(daemon=True)
        self._site = site
        self._tasks = tasks
        self._random = random
        self._pause = pause
        self._prefix = prefix
        self._stopped = Event()
        self.sent = 0
        self.error = None

    def run(self):
        try:
            while not self._stopped.is_set():
                # Such as a broker that has just been restarted, or has just gone.
                with self._site.app.connection_for_write() as connection:
                    lost = connection.connection_errors + connection.channel_errors
                    with contextlib.suppress(OperationalError, *lost):
                        self._send_by(connection)
                self._stopped.wait(0.1)
        except Exception as exc:
            self.error = exc

    def _send_by(self, connection):
        connection.connect()
        with self._site.app.amqp.Producer(connection) as producer:
            producer.maybe_declare(self._site.app.amqp.queues[self._site.queue])
            # So much time is between two messages, on average.
            while not self._stopped.wait(self._random.expovariate(1 / self._pause)):
                self.send(producer)

    def send(self, producer):
        task = self._site.app.tasks[self._random.choice(self._tasks)]
        self.sent += 1
        number = f"{self._prefix}{self.sent}"
        mode = "late" if task.acks_late else "early"
        report = self._site.reports.put
        report({"event": "sending", "number": number, "name": task.name, "mode": mode})
        # Now and then one has to wait for its time.
        countdown = self._random.uniform(0.1, 2) if self._random.random() < 0.1 else None
        task.apply_async(
            args=[self._random.choice([0, 0, 0.02, 0.1, 0.3])],
            task_id=number,
            countdown=countdown,
            producer=producer,
            retry=False,
        )
        report({"event": "sent", "number": number})

    def stop(self):
        self._stopped.set()
        self.join(DEADLINE)
        assert not self.is_alive(), "The sender hangs."
        if self.error:
            raise self.error


class Faults:
    """What can be done to a fleet, by name. Each does it, and sees to it that all can go on."""

    KINDS = (
        "connections cut",
        "network frozen",
        "network frozen and cut",
        "broker restarted",
        "broker killed",
        "worker killed",
        "pool process killed",
        "warm shutdown",
        "cold shutdown",
        "pool restarted",
        "pool grown and shrunk",
        "process lost while settling",
        "poison",
    )
    #: What there is of Redis only.
    REDIS_KINDS = ("failover to a replica",)

    def __init__(self, site, server, random, size):
        self._site = site
        self._server = server
        #: Who has had the place of the broker, if that is a Redis.
        self.succession = Succession(server) if server.url.startswith("redis") else None
        self.kinds = self.KINDS + (self.REDIS_KINDS if self.succession else ())
        self._random = random
        self._reports = site.reports
        self.members = []
        #: All that there have been, by process id, for what they have logged.
        self.all = {}
        self.done = {}
        #: How many workers have ended by themselves.
        self.ended = 0
        #: How many workers did not end, and were killed.
        self.hung = 0
        for _ in range(size):
            self.hire()

    def hire(self):
        member = Member(self._site, self._server.url, "prefork")
        self.members.append(member)
        self.all[member.pid] = member
        member.wait_until_ready()

    def inject(self, kind):
        self.replace_ended()
        member = self._random.choice(self.members)
        self._reports.put({"event": "fault", "kind": kind, "worker": member.pid})
        getattr(self, "_" + kind.replace(" ", "_"))(member)
        self.done[kind] = self.done.get(kind, 0) + 1
        self.replace_ended()

    def _connections_cut(self, member):
        had = member.connections()
        self._cut(member)
        member.wait_until_connected(had + 1)

    def _network_frozen(self, member):
        member.network.freeze()
        self._meanwhile()
        member.network.thaw()

    def _network_frozen_and_cut(self, member):
        had = member.connections()
        member.network.freeze()
        self._meanwhile()
        self._cut(member)
        member.network.thaw()
        member.wait_until_connected(had + 1)

    def _cut(self, member):
        self._reports.put({"event": "cut", "worker": member.pid})
        assert member.network.cut() >= 1

    def _meanwhile(self):
        """Wait while others go on; alone, it is a matter of what is sent."""
        event = "run" if len(self.members) > 1 else "sent"
        self._reports.wait_further(event, self._random.randint(1, 60))

    def _broker_restarted(self, member):
        self._break(self._server.stop)

    def _broker_killed(self, member):
        self._break(self._server.kill)

    def _failover_to_a_replica(self, member):
        replica = self.succession.start_replica()
        self._break(lambda: self.succession.fail_over(replica), start=False)

    def _break(self, end, *, start=True):
        had = [(member, member.connections()) for member in self.members]
        self._reports.put({"event": "broken"})
        end()
        if start:
            self._server.start()
        for member, connections in had:
            member.wait_until_connected(connections + 1)

    def _worker_killed(self, member):
        member.kill()
        self._replace(member)

    def _pool_process_killed(self, member):
        pid = self._random.choice(member.processes())
        self._reports.put({"event": "killed", "pids": [pid]})
        os.kill(pid, signal.SIGKILL)

    def _warm_shutdown(self, member):
        self.members.remove(member)
        assert member.stop() == 0
        self.hire()

    def _cold_shutdown(self, member):
        self._reports.put({"event": "killed", "pids": [member.pid, *member.processes()]})
        os.kill(member.pid, signal.SIGQUIT)
        try:
            member.worker.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            # It says where it hangs. Only this is to be expected, and ended as people end it.
            os.kill(member.pid, signal.SIGUSR1)
            member.worker.wait_for_log(KNOWN_HANG)
            self.hung += 1
        member.close()
        self._replace(member)

    def replace_ended(self):
        """Replace workers that have ended by themselves, as a supervisor does: `KNOWN_END` only."""
        for member in list(self.members):
            if member.worker.process.poll() is not None:
                member.kill()
                assert KNOWN_END in member.worker.text, member.worker.text
                self.ended += 1
                self._replace(member)

    def _replace(self, member):
        self.members.remove(member)
        self.hire()

    def _pool_restarted(self, member):
        self._control(member, "pool_restart", arguments={"reload": False})

    def _pool_grown_and_shrunk(self, member):
        self._control(member, "pool_grow", arguments={"n": 1})
        self._control(member, "pool_shrink", arguments={"n": 1})

    def _process_lost_while_settling(self, member):
        had = self._reports.count("killed")
        (self._site.directory / "settling").touch()
        self._reports.wait_until("killed", had + 1)

    def _poison(self, member):
        had = self._reports.count("killed")
        number = f"poison-{self.done.get('poison', 0)}"
        lives = [f"{number}-{life}" for life in range(LIVES)]
        for life in lives:
            (self._site.directory / life).touch()
        task = self._site.app.tasks[self._random.choice(["late_small", "late_big", "plain_late"])]
        self._reports.put({"event": "sending", "number": number, "name": task.name, "mode": "late"})
        with self._site.app.connection_for_write() as connection:
            task.apply_async(args=[0, *lives], task_id=number, connection=connection)
        self._reports.put({"event": "sent", "number": number})
        # Each time it is behind what was sent meanwhile.
        for life in range(LIVES):
            self._reports.wait_until("killed", had + life + 1)

    def _control(self, member, command, **options):
        # Not one from before the broker was restarted.
        with self._site.app.connection_for_write() as connection:
            reply = self._site.app.control.broadcast(
                command,
                destination=[member.worker.node],
                reply=True,
                timeout=DEADLINE,
                limit=1,
                connection=connection,
                **options,
            )
        assert reply, f"{member.worker.node} does not answer to {command}"
        answer = str(reply[0][member.worker.node])
        assert "ok" in answer or "All processes busy" in answer

    def stop(self):
        """Stop all in good order; return their exit codes."""
        members, self.members = self.members, []
        return [member.stop() for member in members]

    def close(self):
        for member in self.members:
            member.close()
