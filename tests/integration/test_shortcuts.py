"""The setting `batches_shortcuts` in a real worker."""

import pytest


@pytest.mark.redis
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (["amqp_ack"], "ValueError: batches_shortcuts names 'amqp_ack', which is unknown"),
        ("amqp_acks", "TypeError: batches_shortcuts = 'amqp_acks': it has to be True (all)"),
    ],
)
def test_a_setting_that_makes_no_sense_stops_the_worker(redis_url, deploy, capsys, setting, said):
    """The last line of its log names the setting, what is wrong, and the names that are known."""
    site = deploy("filling_app", redis_url, batches_shortcuts=setting)
    with pytest.raises(AssertionError, match="the worker has ended"), site.worker():
        pytest.fail("it is ready")
    log = capsys.readouterr().out
    (line,) = [line for line in log.splitlines() if line.startswith(said)]
    known = line.partition("names: ")[2].split(", ")
    assert known == [
        *("amqp_acks", "amqp_frames", "amqp_nack", "amqp_prefetch", "amqp_publish"),
        *("amqp_reader", "bulk_results", "hard_limit", "lean_promises", "message_templates"),
        *("redis_acks", "redis_publish"),
    ]
