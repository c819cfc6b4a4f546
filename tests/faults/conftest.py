"""The fixtures of the integration tests, and brokers that a test may stop, kill and restart."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import brokers
import pytest
from faults.crash_cases import Case
from faults.crash_run import Result
from faults.crash_table import by_step, by_way, columns
from faults.failover import ON_DISK
from faults.fleet import Faults
from faults.ledger import Totals, table
from integration.conftest import backend, broker, deploy, reports

__all__ = ("backend", "broker", "deploy", "reports")


@pytest.fixture(scope="session")
def _private_servers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, brokers.Server]]:
    servers: dict[str, brokers.Server] = {}
    yield servers
    for server in servers.values():
        server.kill()


@pytest.fixture(
    params=[
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
    ]
)
def private_broker(
    request: pytest.FixtureRequest,
    _private_servers: dict[str, brokers.Server],
    tmp_path_factory: pytest.TempPathFactory,
) -> brokers.Server:
    """A broker of our own that answers: each kind in turn. It keeps on disk what it is told."""
    name = str(request.param)
    server = _private_servers.get(name)
    if server is None:
        directory = tmp_path_factory.mktemp(name)
        try:
            server = start(name, directory)
        except brokers.Missing as missing:
            if os.environ.get("CI") == "true":
                pytest.fail(f"{missing}, and CI has to run every test")
            pytest.skip(str(missing))
        _private_servers[name] = server
    elif not server.answers(server.url):
        server.restart()
    return server


def start(name: str, directory: Path) -> brokers.Server:
    if name == "redis":
        return brokers.start_redis(directory, None, *ON_DISK)
    return brokers.start_rabbitmq(directory)


CRASHES = pytest.StashKey[dict[Case, Result]]()


@pytest.fixture(scope="session")
def crash_results(pytestconfig: pytest.Config) -> dict[Case, Result]:
    """The results of `test_crash_points`, whose tables are shown at the end."""
    return pytestconfig.stash.setdefault(CRASHES, {})


TOTALS = pytest.StashKey[list[tuple[dict[str, Totals], Faults, int]]]()


@pytest.fixture
def totals(pytestconfig: pytest.Config) -> Callable[..., None]:
    """A function that keeps the totals of a ledger, which are shown at the end."""

    def keep(rows: dict[str, Totals], faults: Faults, seed: int) -> None:
        pytestconfig.stash.setdefault(TOTALS, []).append((rows, faults, seed))

    return keep


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the ledgers' totals, and the tables of crash points."""
    if results := config.stash.get(CRASHES, {}):
        _show_crashes(terminalreporter, results)
    if kept := config.stash.get(TOTALS, []):
        _show_totals(terminalreporter, kept)


def _show_crashes(reporter: pytest.TerminalReporter, results: dict[Case, Result]) -> None:
    seconds = sum(result.seconds for result in results.values())
    reporter.section(f"{len(results)} losses, of batches / ordinary tasks, in {seconds:.0f} s")
    for rows in (by_way(results), by_step(results)):
        for line in [*columns(rows), ""]:
            reporter.line(line)


def _show_totals(
    reporter: pytest.TerminalReporter, kept: list[tuple[dict[str, Totals], Faults, int]]
) -> None:
    injected = Counter[str]()
    rows: dict[str, Totals] = {}
    for totals, faults, _ in kept:
        injected.update(faults.done)
        rows.update(totals)
    reporter.section(f"{injected.total()} faults, FAULTS_SEED={kept[0][2]}")
    for kind, number in sorted(injected.items()):
        reporter.line(f"{number:>4} {kind}")
    ended = sum(faults.ended for _, faults, _ in kept)
    reporter.line(f"{ended:>4} workers ended by themselves, for a fault of kombu's")
    hung = sum(faults.hung for _, faults, _ in kept)
    reporter.line(f"{hung:>4} workers hung when shut down cold, for a fault of Celery's")
    for line in table(rows):
        reporter.line(line)
