"""What a batch cannot do is refused, with the name of the task."""

from __future__ import annotations

from typing import Any

import pytest

from kit.tracing import World


@pytest.mark.parametrize(
    "call",
    [
        lambda task: task.replace(task.s()),
        lambda task: task.add_to_chord(task.s()),
        lambda task: task.map([1]),
        lambda task: task.starmap([(1,)]),
        lambda task: task.chunks([(1,)], 1),
    ],
    ids=["replace", "add_to_chord", "map", "starmap", "chunks"],
)
def test_what_a_batch_cannot_do(world: World, call: Any) -> None:
    """It says so, with the name of the task."""
    with pytest.raises(NotImplementedError, match=r"unit\.click"):
        call(world.define(lambda requests: None))
