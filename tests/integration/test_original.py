"""An application written for the original celery-batches 0.11 runs unchanged."""

import sys

import pytest
from harness import python_of


@pytest.mark.parametrize("package", ["ours", "0.11"])
def test_an_app_for_0_11(package, broker, backend, deploy):
    python = sys.executable if package == "ours" else python_of("original")
    # Without a prefix, which not every Celery makes into the same keys: the two may differ here.
    site = deploy("original_app", broker, backend, result_backend_transport_options={})
    module = site.module
    urls = [f"https://{'x' * (i % 3)}.example.com/{i}" for i in range(6)]
    clicks = [module.count_click.delay(url="/home") for _ in range(3)]
    reputations = [module.wot_api.delay(url) for url in urls]
    retried = [module.unreliable.delay(i, by=10) for i in range(6)]
    plain = [module.ordinary.delay(i) for i in range(3)]
    with site.worker(python=python) as worker:
        counts = [result.get(timeout=30) for result in clicks]
        assert all(1 <= count <= 3 for count in counts)
        assert [result.get(timeout=30) for result in reputations] == [
            len(f"{'x' * (i % 3)}.example.com") for i in range(6)
        ]
        assert [result.get(timeout=30) for result in retried] == [i * 10 for i in range(6)]
        assert [result.get(timeout=30) for result in plain] == [1, 2, 3]
        site.wait_until_active(worker, 0)
    attempts = {path.name for path in site.directory.glob("attempts-*")}
    assert attempts == {f"attempts-{result.id}" for result in retried[1::2]}
    assert site.messages_left() == 0
    if backend.startswith("redis"):
        for result in (*clicks, *reputations, *retried, *plain):
            result.forget()
