"""`make demo` is what people try first: it has to run, and what it prints has to be true."""

import os
import re
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "demo" / "demo.py"


def run_demo(tmp_path: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(DEMO)],
        cwd=tmp_path,
        env={**os.environ, "BROKER": "", "TMPDIR": str(tmp_path), **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_demo_counts_every_click_and_says_in_which_batches(tmp_path: Path) -> None:
    result = run_demo(tmp_path, DEMO_CLICKS="230")
    output = result.stdout

    assert result.returncode == 0, output + result.stderr
    assert re.search(r"^Calls sent +230$", output, re.MULTILINE)
    lines = re.findall(r"^ +(\d+) of (\d+) requests, flushed by (\w+)$", output, re.MULTILINE)
    batches = re.search(r"^Batches run +(\d+)$", output, re.MULTILINE)
    assert batches
    assert int(batches[1]) == sum(int(times) for times, _, _ in lines)
    assert sum(int(times) * int(size) for times, size, _ in lines) == 230
    assert {trigger for _, size, trigger in lines if size == "100"} <= {"size"}
    assert "All 8 counts equal what was sent, in both ways." in output
    assert re.search(rf"^ +transactions +{batches[1]} +230 +[\d.]+x$", output, re.MULTILINE)
    assert "batch task      sent   230   counted in SQLite   230" in output
    assert not list(tmp_path.glob("celery-batches-demo-*")), "it cleans up after itself"


def test_demo_says_that_there_is_no_broker(tmp_path: Path) -> None:
    result = run_demo(tmp_path, BROKER="amqp://127.0.0.1:1//")

    assert result.returncode == 1
    assert result.stderr.startswith("Failed: There is no broker at BROKER: ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("celery-batches-demo-*")), "it cleans up after itself"
