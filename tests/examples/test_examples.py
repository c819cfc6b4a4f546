"""Every example of the documentation runs, on a real worker, and does what its page says."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from uuid import uuid4

import psycopg
import pytest
from celery import chord, states

from celery_batches import Batches
from kit.examples import EXAMPLES, running_worker

ROOT = Path(__file__).parents[2]
README = ROOT / "README.rst"

#: Seconds that anything may take before a test gives up on it.
DEADLINE = 30


def rows_of(module, query):
    with closing(sqlite3.connect(module.DATABASE)) as db:
        return db.execute(query).fetchall()


def code_blocks(page, language):
    """The page's code blocks in that language, not indented."""
    pattern = rf"^\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)"
    blocks = re.findall(pattern, page.read_text(), re.MULTILINE)
    # Four columns are the block's: more of them are part of what is shown.
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip("\n") for block in blocks]


def test_prices_prints_what_the_readme_shows(load, capsys):
    """Each of four calls in one batch has its own result or failure, as the README shows."""
    example = load("prices")
    with running_worker(example.app) as runs:
        capsys.readouterr()
        example.main()
        assert runs.get(timeout=DEADLINE) == (states.SUCCESS, None)
        assert runs.empty()
        [query, *printed] = capsys.readouterr().out.splitlines()
    assert query == "one query for 3 articles"
    shown, _picture = code_blocks(README, "text")
    assert printed == shown.splitlines()


def test_readme_shows_the_prices():
    """The README's code is that of the example, word for word."""
    source = (EXAMPLES / "prices.py").read_text()
    blocks = code_blocks(README, "python")
    assert len(blocks) == 2
    for block in blocks:
        assert block in source or textwrap.indent(block, "    ") in source


def test_readme_links_to_pages_that_exist():
    """Every relative link of the README is to a file of the repository."""
    targets = re.findall(r"<([^<>\s]+\.rst)>`__", README.read_text())
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_readme_quotes_the_figures_of_the_performance_page():
    """The README's figures are those of its case in the newest table."""
    page = (ROOT / "docs" / "performance.rst").read_text()
    newest = re.findall(r"^rabbitmq-base +([\d,]+) +([\d,]+) +([\d,]+) ", page, re.MULTILINE)[0]
    readme = README.read_text()
    start = readme.index("How fast it is")
    section = readme[start : readme.index("``rabbitmq-base``", start)]
    assert set(re.findall(r"\d,\d{3}", section)) == set(newest)


def test_click_counter_prints_a_line_for_each_url(load, capsys):
    """A hundred clicks are one batch, which prints one line for each URL."""
    example = load("click_counter")
    with running_worker(example.app) as runs:
        capsys.readouterr()
        example.main()
        assert runs.get(timeout=DEADLINE) == (states.SUCCESS, None)
        printed = capsys.readouterr().out
    assert printed == " 75 clicks on /home\n 25 clicks on /about\n"


def test_last_seen_keeps_the_latest_time_of_each_user(load):
    """Of 200 calls in any order, the newest of each user is what is written."""
    example = load("last_seen")
    with running_worker(example.app) as runs:
        for n in range(200):
            example.seen.delay(f"user-{n % 3}", float(n * 7 % 200))
        assert runs.get(timeout=DEADLINE) == (states.SUCCESS, "200 calls, 3 users")
    times = {user: [n * 7 % 200 for n in range(200) if n % 3 == user] for user in range(3)}
    expected = {(f"user-{user}", float(max(times[user]))) for user in range(3)}
    assert set(rows_of(example, "SELECT user, at FROM last_seen")) == expected


def test_last_seen_is_not_set_back_by_a_later_batch(load):
    """A time that arrives in a later batch, but is older, changes nothing."""
    example = load("last_seen")
    example.save({"user-0": 20.0})
    example.save({"user-0": 10.0, "user-1": 5.0})
    rows = rows_of(example, "SELECT user, at FROM last_seen ORDER BY user")
    assert rows == [("user-0", 20.0), ("user-1", 5.0)]


def test_last_seen_main_makes_one_batch(load):
    """The producer of the example fills a batch."""
    example = load("last_seen")
    with running_worker(example.app) as runs:
        example.main()
        assert runs.get(timeout=DEADLINE) == (states.SUCCESS, "200 calls, 3 users")


def test_without_bots_leaves_them_out_of_the_batch(load, caplog):
    """80 of 100 clicks reach the body; the others are acknowledged without a warning."""
    example = load("without_bots")
    with running_worker(example.app) as runs:
        example.main()
        state, returned = runs.get(timeout=DEADLINE)
        assert (state, returned) == (states.SUCCESS, "80 clicks: {'/home': 40, '/about': 40}")
        assert runs.empty()
    assert "left out" not in caplog.text


ROWS = [(f"name-{number}", str(number)) for number in range(250)]


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("".join(f"{name},{value}\n" for name, value in ROWS))
    return path


def test_import_file_sends_a_call_for_each_line(load, csv_file):
    """The worker gets them in batches of a hundred."""
    example = load("import_file")
    with running_worker(example.app) as runs:
        example.import_file(csv_file)
        for _ in range(3):
            assert runs.get(timeout=DEADLINE) == (states.SUCCESS, None)
    assert example.stored == ROWS


def test_import_safely_goes_on_after_an_error(load, csv_file):
    """What may not be sent is sent again under its id, and then the rest of the file."""
    example = load("import_file")
    task = example.store_row
    ids, send = [], task.apply_async

    def send_or_fail(args, kwargs, **options):
        ids.append(options["task_id"])
        if len(ids) == 100:
            raise task.OperationalError("the connection is lost")
        return send(args, kwargs, **options)

    task.apply_async = send_or_fail
    with running_worker(example.app) as runs:
        example.import_safely(csv_file)
        for _ in range(3):
            assert runs.get(timeout=DEADLINE) == (states.SUCCESS, None)
    assert example.stored == ROWS
    assert ids[99] == ids[100]
    assert len(set(ids)) == len(ROWS)


def test_bulk_insert_writes_every_row_in_one_batch(load):
    """500 calls become 500 rows by one run of the body."""
    example = load("bulk_insert")
    with running_worker(example.app) as runs:
        example.main()
        assert runs.get(timeout=DEADLINE) == (states.SUCCESS, 500)
        assert runs.empty()
    rows = rows_of(example, "SELECT sensor, value FROM reading ORDER BY value")
    assert rows == [(f"sensor-{n % 10}", n) for n in range(500)]


def test_bulk_insert_does_not_insert_a_call_twice(load):
    """A message that is delivered again, under its own id, does not make a second row."""
    example = load("bulk_insert")
    for _ in range(2):
        example.save_reading.apply(kwargs={"sensor": "a", "value": 1}, task_id="the-id", throw=True)
    assert rows_of(example, "SELECT * FROM reading") == [("the-id", "a", 1)]


def test_per_tenant_writes_the_rows_of_one_tenant_at_a_time(load, tmp_path):
    """Each batch opens one database, and each database has its own rows."""
    example = load("per_tenant", DIRECTORY=str(tmp_path))
    with running_worker(example.app) as runs:
        for value in range(600):
            example.import_rows.delay(tenant=f"tenant-{value % 3}", value=value)
        expected = {(states.SUCCESS, f"200 rows of tenant-{number}") for number in range(3)}
        assert {runs.get(timeout=DEADLINE) for _ in range(3)} == expected
        assert runs.empty()
    for number in range(3):
        with closing(sqlite3.connect(tmp_path / f"tenant-{number}.db")) as db:
            rows = db.execute("SELECT value FROM row ORDER BY value").fetchall()
        assert rows == [(value,) for value in range(number, 600, 3)]


def test_bulk_upload_stays_within_a_megabyte(load, capsys):
    """Documents of 50 kB each: as many as fit are sent in one request."""
    example = load("bulk_upload")
    with running_worker(example.app) as runs:
        capsys.readouterr()
        example.main()
        assert [runs.get(timeout=DEADLINE)[0] for _ in range(5)] == [states.SUCCESS] * 5
        sizes = [int(line.split()[2]) for line in capsys.readouterr().out.splitlines()]
    assert all(900_000 < size < 1_000_000 for size in sizes)


@pytest.mark.postgresql
def test_one_bad_row_fails_its_call_alone(load, monkeypatch, postgresql_url, capsys):
    """19 rows are stored, one caller gets the database's error: by two options, and no code."""
    schema = f"test_{uuid4().hex}"
    with psycopg.connect(postgresql_url, autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {schema}")
        db.execute(f"CREATE TABLE {schema}.person (name VARCHAR(20) PRIMARY KEY)")
        monkeypatch.setenv("PGOPTIONS", f"-c search_path={schema}")
        try:
            example = load("one_bad_row", DATABASE=postgresql_url)
            with running_worker(example.app) as runs:
                capsys.readouterr()
                example.main()
                assert runs.get(timeout=DEADLINE) == (states.SUCCESS, None)
                assert runs.empty()
                printed = capsys.readouterr().out.splitlines()
            names = db.execute(f"SELECT name FROM {schema}.person").fetchall()
        finally:
            db.execute(f"DROP SCHEMA {schema} CASCADE")
    assert sorted(names) == sorted((f"person {number}",) for number in range(19))
    [shown] = code_blocks(ROOT / "docs" / "failures.rst", "text")
    assert printed == shown.splitlines()


class PriceAPI(BaseHTTPRequestHandler):
    """A bulk API: takes a list of articles, returns their prices."""

    prices = {"tea": 3, "milk": 1}  # noqa: RUF012 - read only

    def do_POST(self):
        articles = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.queries.append(articles)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps({name: self.prices[name] for name in articles}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def price_api(monkeypatch):
    """The API that the example asks, on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), PriceAPI) as server:
        server.queries, server.status = [], 200
        monkeypatch.setenv("PRICE_API", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join(DEADLINE)


def test_bulk_api_gives_each_caller_its_result(load, price_api, capsys):
    """Three calls cost one request to the API, and each caller gets the price it asked for."""
    example = load("bulk_api")
    with running_worker(example.app):
        capsys.readouterr()
        example.main()
        assert capsys.readouterr().out == "tea 3\nmilk 1\ntea 3\n"
    assert price_api.queries == [["milk", "tea"]]


def test_a_call_that_is_marked_as_done_counts_for_its_chord(load, price_api):
    """The body of a chord of batched calls gets their results."""
    example = load("bulk_api")

    @example.app.task(name="bill")
    def bill(prices):
        return sum(prices)

    with running_worker(example.app):
        header = [example.price_of.s(article) for article in ("tea", "milk", "tea")]
        assert chord(header)(bill.s()).get(timeout=DEADLINE, interval=0.01) == 7


def test_a_body_that_raises_leaves_what_it_has_marked(load):
    """Only the calls that the body did not mark fail; their `link_error` is told."""
    app = load("bulk_api").app
    told = Queue()

    @app.task(base=Batches, name="half", flush_every=2)
    def half(requests):
        app.backend.mark_as_done(requests[0].id, "fine", request=requests[0])
        raise LookupError("no more")

    @app.task(name="tell")
    def tell(request, exc, traceback):
        told.put((request.id, str(exc)))

    with running_worker(app):
        first, second = [half.apply_async((n,), link_error=tell.s()) for n in range(2)]
        with pytest.raises(LookupError, match="no more"):
            second.get(timeout=DEADLINE, interval=0.01)
        assert first.get(timeout=DEADLINE, interval=0.01) == "fine"
        assert told.get(timeout=DEADLINE) == (second.id, "no more")
    assert told.empty()


def test_bulk_api_tells_every_caller_that_the_body_raised(load, price_api):
    """When the API is down, the exception of the body reaches each caller."""
    price_api.status = 500
    example = load("bulk_api")
    with running_worker(example.app):
        results = [example.price_of.delay(article) for article in ("tea", "milk")]
        for result in results:
            result.get(timeout=DEADLINE, interval=0.01, propagate=False)
            assert result.state == states.FAILURE
            assert str(result.result) == "No prices: HTTP Error 500: Internal Server Error"


def test_try_again_runs_the_call_again_under_its_id(load, capsys):
    """A call that could not be served is sent again, and its caller gets the result in the end."""
    example = load("try_again")
    with running_worker(example.app) as runs:
        capsys.readouterr()
        example.main()
        assert capsys.readouterr().out == "3.0\n"
        assert runs.qsize() >= 1  # The second report may come after the result.
        assert [runs.get(timeout=DEADLINE)[0] for _ in range(2)] == [states.SUCCESS] * 2


def test_try_again_gives_up_on_one_call_alone(load):
    """A call that never works fails for its caller in the end; its neighbour is not affected."""
    example = load("try_again")
    with running_worker(example.app):
        hopeless, fine = example.halve.delay(-1), example.halve.delay(8)
        assert fine.get(timeout=DEADLINE, interval=0.01) == 4
        with pytest.raises(ConnectionError, match="try again later"):
            hopeless.get(timeout=DEADLINE, interval=0.01)


@pytest.mark.parametrize(
    ("way", "result"), [("one_call", 5), ("always_eager", 5), ("whole_batch", 6)]
)
def test_eager_runs_without_a_worker(load, way, result):
    """Each of the ways to run a batch task in this process returns what the page says."""
    assert getattr(load("eager"), way)() == result


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("test_*.py")))
def test_a_suite_of_the_page_on_testing_passes(name, tmp_path):
    """It passes in a pytest of its own."""
    suite = shutil.copy(EXAMPLES / name, tmp_path)
    tests = Path(suite).read_text().count("\ndef test_")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", suite]
    env = {**os.environ, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert re.search(rf"^=+ {tests} passed\b", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_the_page_on_testing_shows_files_that_run():
    """All of its Python is from a file that a test runs; the rest are commands of the shell."""
    page = (ROOT / "docs" / "testing.rst").read_text()
    shown = set(re.findall(r"literalinclude:: examples/(\S+)", page))
    assert shown == {path.name for path in EXAMPLES.glob("test_*.py")}
    assert "code-block::" not in page
    for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", page):
        assert all(line.startswith("    pip install") for line in block.splitlines() if line)


def test_every_example_is_shown():
    """There is no example that no page shows."""
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.rst"))
    for example in EXAMPLES.glob("*.py"):
        assert f"literalinclude:: examples/{example.name}" in pages, example.name
