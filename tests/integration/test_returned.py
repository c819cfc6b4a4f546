"""Results by return on real workers: in links, chains and chords, with reruns and duplicates."""

import pytest
from celery import chord, group
from celery.exceptions import ChordError, SoftTimeLimitExceeded
from harness import one_worker, options_for
from kombu.utils.uuid import uuid


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((broker, pool), marks=getattr(pytest.mark, broker), id=f"{broker}-{pool}")
        for broker, pool in (("redis", "prefork"), ("redis", "threads"), ("rabbitmq", "prefork"))
    ],
)
def shared(request, redis_url, tmp_path_factory):
    broker, pool = request.param
    url = request.getfixturevalue(f"{broker}_url")
    options = options_for(url, redis_url, f"test-{uuid()}")
    with one_worker("returned_app", tmp_path_factory.mktemp("returned"), options, pool) as both:
        yield *both, pool


@pytest.fixture(params=["listed", "by_id"])
def task(request, site):
    return getattr(site.module, request.param)


def told(site, name, event="told"):
    (report,) = site.reports.expect(event, each=lambda report: report["name"] == name)[-1:]
    return report


def error_of(failed):
    """Why a chord has failed."""
    error = failed.get(timeout=30, propagate=False)
    assert isinstance(error, ChordError)
    return str(error)


def test_links_and_chains_continue(site, task):
    """Each with the result of its own call."""
    module, name = site.module, uuid()
    linked = task.apply_async((1,), link=module.told.s(name))
    failing = task.apply_async(("fail",), link_error=module.told_error.s(name))
    chained = (task.s(3) | module.following.s()).delay()
    plain = task.delay(4)
    assert linked.get(timeout=30) == 2
    assert chained.get(timeout=30) == 106
    assert plain.get(timeout=30) == 8
    with pytest.raises(KeyError):
        failing.get(timeout=30)
    assert told(site, name)["value"] == 2
    assert told(site, name, "told_error")["id"] == failing.id


def test_chords(site, task):
    """Each call is a part. One that fails by its item fails its chord, and no other."""
    good = chord([task.s(1), task.s(2)], site.module.add.s())()
    bad = chord([task.s(3), task.s("fail")], site.module.add.s())()
    assert good.get(timeout=30) == 6
    assert "KeyError('item')" in error_of(bad)
    assert [part.state for part in bad.parent] == ["SUCCESS", "FAILURE"]


def test_a_retried_item_ends_its_chord_later(site, task):
    """It is retried alone, under its own id."""
    sum_of = chord([task.s(1), task.s(2), task.s(3), task.s("again")], site.module.add.s())()
    group([task.s(n) for n in range(3)]).delay()  # To fill the batch of the retry.
    assert sum_of.get(timeout=30) == 2 + 4 + 6 + 5


def test_a_result_that_is_refused_fails_its_call_alone(site, task):
    """And its chord. Its neighbours in the batch are done."""
    bad = chord([task.s(5), task.s("refused")], site.module.add.s())()
    others = [task.delay(n) for n in range(2)]
    assert [other.get(timeout=30) for other in others] == [0, 2]
    assert "EncodeError" in error_of(bad)
    done, refused = bad.parent
    assert done.get(timeout=30) == 10
    assert type(refused.get(timeout=30, propagate=False)).__name__ == "EncodeError"


def test_poison_in_a_chord(site):
    """With reruns too, each part counts once."""
    halved = site.module.halved
    good = chord([halved.s(1), halved.s(2)], site.module.add.s())()
    bad = chord([halved.s(3), halved.s("poison")], site.module.add.s())()
    assert good.get(timeout=30) == 6
    assert "Poison('no')" in error_of(bad)


def test_duplicates_are_parts_of_a_chord(site):
    """The body gets one call. Each part has its result, and each link is called."""
    single, name = site.module.single, uuid()
    linked = single.apply_async((1,), {"key": name}, link=site.module.told.s(name))
    parts = [single.s(n, key=name) for n in (2, 3, 4)]
    assert chord(parts, site.module.add.s())().get(timeout=30) == 3 * 8
    assert linked.get(timeout=30) == 8
    assert told(site, name)["value"] == 8
    assert site.reports.of("single")[-1]["size"] == 1


def test_the_soft_time_limit_in_a_rerun(site, shared):
    """It ends the batch. What another run has done by then stays."""
    if shared[2] != "prefork":
        pytest.skip("only prefork has soft time limits")
    first, second, third, fourth = [site.module.limited.delay(n) for n in range(4)]
    for call in (third, fourth):
        with pytest.raises(SoftTimeLimitExceeded):
            call.get(timeout=30)
    assert [first.get(timeout=30), second.get(timeout=30)] == [0, 2]
    assert [report["size"] for report in site.reports.of("limited")] == [4, 2, 2]
