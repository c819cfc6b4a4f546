"""Workers whose user has the rights that ordinary tasks need, and no others."""

import subprocess
from urllib.parse import urlsplit, urlunsplit

import brokers
import pytest
from celery import VERSION, chord
from redis import Redis

#: What batches use beyond ordinary tasks, with `bulk_results`.
ADDED = ("MGET", "EVAL")
#: What the worker logs if they are denied.
WARNINGS = ["states at once, so one by one"]
if VERSION >= (5, 7):  # Older ones count the parts of a chord without a script.
    WARNINGS.append("Cannot store a chord part and count it at once")
USER, PASSWORD = "worker", "password"

#: Queues, exchanges and the worker's part of remote control and events.
NAMES = r"test-.*|.*celery\.pidbox|celeryev.*"
RIGHTS = (f"^({NAMES})$", rf"^({NAMES}|amq\.default)$", f"^({NAMES})$")


@pytest.fixture
def redis_user(private_broker):
    """Let a user have all but these commands, and those for administrators."""

    def redis_user(without):
        with Redis.from_url(private_broker.url) as client:
            denied = [f"-{name}" for name in ("@admin", "@dangerous", *without)]
            client.acl_setuser(
                USER,
                enabled=True,
                reset=True,
                passwords=[f"+{PASSWORD}"],
                keys=["*"],
                channels=["*"],
                commands=["+@all", *denied],
            )
        return login(private_broker.url)

    return redis_user


def login(url):
    """The URL, for the worker's user."""
    parts = urlsplit(url)
    netloc = f"{USER}:{PASSWORD}@{parts.hostname}:{parts.port}"
    return urlunsplit(parts._replace(netloc=netloc))


def have_worker_log_in(site, **urls):
    """Configure the worker, and not the app that the test has."""
    with (site.directory / "celeryconfig.py").open("a") as config:
        config.writelines(f"{key} = {url!r}\n" for key, url in urls.items())


def call(site, worker, kind, *, in_chord):
    """Have calls of all sorts end."""
    for mode in ("early", "late"):
        task = site.app.tasks[f"{kind}_{mode}"]
        linked = [
            task.apply_async((each,), link=site.module.total.s())
            for each in ("done", "fail", "retry")
        ]
        plain = [task.delay("done") for _ in range(3)]
        results = [*linked, *plain]
        for result in results:
            result.get(timeout=40, propagate=False)
        assert [result.state for result in results] == ["SUCCESS", "FAILURE", *["SUCCESS"] * 4]
        if in_chord:
            whole = chord(task.s("done") for _ in range(3))(site.module.total.s())
            assert whole.get(timeout=40) == 3
    # The links of two calls for each mode, and the chord.
    site.reports.expect("total", 2 * (2 + in_chord))
    site.wait_until_active(worker, 0)


@pytest.mark.redis
@pytest.mark.parametrize("private_broker", ["redis"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "without"), [("ordinary", ADDED), ("batch", ADDED), ("batch", ())]
)
def test_redis(redis_user, private_broker, deploy, kind, without):
    """Batches need two commands for `bulk_results`: without these, all is stored one by one."""
    url = redis_user(without)
    site = deploy("rights_app", private_broker.url, private_broker.url)
    have_worker_log_in(site, broker_url=url, result_backend=url)
    with site.worker() as worker:
        call(site, worker, kind, in_chord=True)
    assert site.messages_left() == 0
    assert worker.problems == []
    denied = WARNINGS if kind == "batch" and without else []
    assert [warning for warning in WARNINGS if warning in worker.text] == denied


@pytest.mark.rabbitmq
@pytest.mark.parametrize("private_broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("kind", ["ordinary", "batch"])
def test_rabbitmq(private_broker, deploy, kind):
    control(private_broker, "add_user", USER, PASSWORD)
    try:
        control(private_broker, "set_permissions", USER, *RIGHTS)
        site = deploy("rights_app", private_broker.url, "rpc://")
        have_worker_log_in(site, broker_url=login(private_broker.url))
        with site.worker() as worker:
            call(site, worker, kind, in_chord=False)
        assert site.messages_left() == 0
        assert worker.problems == []
        assert "Cannot" not in worker.text
    finally:
        control(private_broker, "delete_user", USER)


def control(server, *command):
    subprocess.run(
        [brokers.find_program("rabbitmqctl"), *command],
        env={**brokers._environment(), **server.environment},
        check=True,
        timeout=60,
        capture_output=True,
    )
