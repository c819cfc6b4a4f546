"""The example of async bodies: all requests of a batch at once, on connections that are kept."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Thread

import pytest

from celery_batches.pool.event_loops import close_loops
from celery_batches.testing import run_batch
from kit.examples import running_worker

#: Seconds that anything may take before a test gives up on it.
DEADLINE = 30


class StockAPI(BaseHTTPRequestHandler):
    """An API that answers for one article at a time."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        article = self.path.strip("/")
        self.server.queries.append((self.client_address, article))
        self.server.at_once.wait()
        body = json.dumps(len(article)).encode()
        self.send_response(404 if article == "gold" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def stock_api(monkeypatch):
    """The API that the example asks, on this machine. It answers three queries at once."""
    with ThreadingHTTPServer(("127.0.0.1", 0), StockAPI) as server:
        server.queries, server.at_once = [], Barrier(3, timeout=DEADLINE)
        server.daemon_threads = True
        monkeypatch.setenv("STOCK_API", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        close_loops()
        server.shutdown()
        thread.join(DEADLINE)


def test_stock_asks_for_all_articles_at_once(load, stock_api, capsys):
    """Each call has its own result or failure, and the next batch uses the same connections."""
    example = load("stock")
    example.app.conf.task_annotations = {"*": {"flush_every": 3}}
    with running_worker(example.app):
        for _ in range(2):
            capsys.readouterr()
            example.main()
            assert capsys.readouterr().out == "tea 3\nmilk 4\ngold no gold: 404\n"
    asked = sorted(article for _, article in stock_api.queries)
    assert asked == sorted(2 * ["tea", "milk", "gold"])
    assert len({connection for connection, _ in stock_api.queries}) == 3


def test_stock_tries_again_what_did_not_work(load, monkeypatch):
    """A lookup that cannot reach the API is retried alone."""
    monkeypatch.setenv("STOCK_API", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    batch = run_batch(load("stock").in_stock, [("tea",), ("milk",)])
    assert batch.states == ["RETRY", "RETRY"]
    assert batch.exception is None
    close_loops()
