"""The benchmark measures all peers: that it works is shown here, and nothing of what it finds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import python_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.rabbitmq
def test_a_few_messages_through_every_peer(rabbitmq_url, tmp_path):
    for peer in ("bench-original", "bench-celery", "bench-kombu"):
        python_of(peer)
    # Under tox this package is on another Celery than its peers.
    options = ["--cases", "rabbitmq-base", "--quick", "--messages", "300", "--mixed"]
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *options, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["peer"] for run in runs] == ["ours", "original", "plain", "kombu", "mixin"]
    assert all(run["figures"]["rate"] > 0 for run in runs)
    assert [run["sizes"] for run in runs] == [{"100": 3}, {"100": 3}, {"1": 300}, {}, {}]
    assert (tmp_path / "tables.rst").read_text().strip() == ended.stdout.strip()


def test_the_stages_of_this_package():
    """Also without a broker and a result backend, with both ways to give results."""
    options = ["--peers", "ours", "--repeats", "1", "--turns", "1"]
    environment = {**os.environ, "TEST_REDIS_URL": ""}
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / "stages.py"), *options],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    *_, last = ended.stdout.splitlines()
    assert last.startswith("no result backend: marked ")
    assert ended.stderr == ""
