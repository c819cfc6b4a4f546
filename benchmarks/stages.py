"""Where the time of a message goes in a worker, stage by stage: `python benchmarks/stages.py`.

In microseconds for each message, beside the original and plain Celery tasks, so that a regression
names its cause. The figures are the least of many batches: what else the machine does can only add.

receive     message -> Celery's Request -> buffer           (main process)
dispatch    buffer -> what the pool is given                (main process)
pickle      on its way to the pool                          (main process)
unpickle    on arrival                                      (child)
run         an empty body, and what is around it            (child)
return      what is said of it, pickled and unpickled       (child, main process)
complete    states, events, acknowledgements                (main process)
results     `run`, and a result in Redis for each           (child; needs TEST_REDIS_URL)

The last lines compare the two ways in which the body of this package gives each request a result:
`return_results`, and a mark of each. First without a result backend, which is the difference in
full, then with Redis.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from environments import ENVIRONMENTS, HERE, find, variables
from tables import simple_table

PEERS = ("ours", "original", "plain")
STAGES = ("receive", "dispatch", "pickle", "unpickle", "run", "return", "complete")
#: Measured where there is a Redis, and no part of the sum.
RESULTS = "results"
#: How the body of this package gives each request a result.
WAYS = ("mark", "return")
#: The stages in the main process; of `return` it has a part.
IN_MAIN = ("receive", "dispatch", "pickle", "return", "complete")


def probe(peer: str, count: int, size: int, repeats: int) -> dict[str, Any]:
    """Time all stages of a peer, in its own environment."""
    found = _probe(peer, count, size, repeats)
    redis = os.environ.get("TEST_REDIS_URL")
    if redis:
        stored = _probe(peer, count, size, repeats, "mark", redis)
        for run, with_results in zip(found["runs"], stored["runs"], strict=True):
            run[RESULTS] = with_results["run"]
    if peer == "ours":
        backends = {"no result backend": "", **({"Redis": redis} if redis else {})}
        found["ways"] = {
            title: _probe(peer, count, size, repeats, ",".join(WAYS), backend)["ways"]
            for title, backend in backends.items()
        }
    return found


def _probe(peer: str, *arguments: Any) -> dict[str, Any]:
    python, script = find(peer), HERE / "apps" / "stage_probe.py"
    command = [python, str(script), peer, *map(str, arguments)]
    output = subprocess.check_output(command, cwd="/", env=variables(python))
    found: dict[str, Any] = json.loads(output)
    return found


def least(turns: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The least time of each stage, in microseconds for each message."""
    runs = [run for turn in turns for run in turn["runs"]]
    return {stage: 1e6 * min(run[stage] for run in runs) for stage in runs[0]}


def ways(turns: Sequence[Mapping[str, Any]]) -> str:
    """What `return_results` costs beside marking each request. The two take turns."""
    lines = []
    for title in turns[0]["ways"]:
        marked, returned = (
            [1e6 * run["run"] for turn in turns for run in turn["ways"][title][way]] for way in WAYS
        )
        ratio = median(one / other for one, other in zip(returned, marked, strict=True))
        lines.append(
            f"{title}: marked {min(marked):.2f} µs, returned {min(returned):.2f} µs, ratio "
            f"{min(returned) / min(marked):.3f} (median of {len(marked)} pairs {ratio:.3f})"
        )
    return "\n".join(lines)


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The stages as rows, the peers as columns."""
    times = {peer: least(turns) for peer, turns in found.items()}
    rows = [[stage, *(f"{times[peer][stage]:.2f}" for peer in found)] for stage in STAGES]
    for title, stages in (("main process", IN_MAIN), ("all", STAGES)):
        rows.append([title, *(f"{sum(times[peer][s] for s in stages):.2f}" for peer in found)])
    if all(RESULTS in each for each in times.values()):
        rows.append([RESULTS, *(f"{times[peer][RESULTS]:.2f}" for peer in found)])
    rows.append(["pickled bytes", *(str(turns[-1]["bytes"]) for turns in found.values())])
    return simple_table(["µs for each", *(ENVIRONMENTS[peer].title for peer in found)], rows)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flush-every", type=int, default=100)
    parser.add_argument("--size", type=int, default=100, help="bytes of arguments")
    parser.add_argument("--repeats", type=int, default=20, help="batches in each turn")
    parser.add_argument("--turns", type=int, default=3, help="how often the peers take turns")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--json", action="store_true", help="print all that was measured")
    options = parser.parse_args(arguments)
    found: dict[str, list[dict[str, Any]]] = {peer: [] for peer in options.peers}
    for _ in range(options.turns):
        for peer, turns in found.items():
            turns.append(probe(peer, options.flush_every, options.size, options.repeats))
    if options.json:
        print(json.dumps(found))
        return 0
    print(table(found))
    if "ours" in found:
        print(ways(found["ours"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
