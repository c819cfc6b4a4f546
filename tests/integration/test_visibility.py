"""Redis delivers again what waits in the worker for too long: the worker says so at its start."""

import pytest


@pytest.mark.redis
def test_a_worker_warns_of_an_interval_beyond_the_visibility_timeout(redis_url, deploy):
    options = {"global_keyprefix": "visibility", "visibility_timeout": 10}
    site = deploy("signals_app", redis_url, broker_transport_options=options)
    with site.worker() as worker:
        worker.wait_for_log(r"WARNING.*Task late: flush_interval is 600s, but .* of 10s")
