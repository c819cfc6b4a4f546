"""What the tests deploy does not meet what earlier tests have left."""

from harness import Deployment, options_for
from kombu.utils.uuid import uuid


def test_each_deployment_has_connections_of_its_own_that_close_with_it(broker, reports, tmp_path):
    sites = [
        Deployment(
            "one_task_app", tmp_path / name, options_for(broker, None, f"test-{uuid()}"), reports
        )
        for name in ("first", "second")
    ]
    used = [connection_of(site) for site in sites]
    assert used[0] is not used[1]
    for site, connection in zip(sites, used, strict=True):
        assert connection_of(site) is connection
        assert connection.connected
        site.close()
        assert not connection.connected


def connection_of(site):
    with site.app.producer_pool.acquire(block=True) as producer:
        producer.maybe_declare(site.app.amqp.queues[site.queue])
        return producer.connection
