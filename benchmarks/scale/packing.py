"""How well shards fill a node of eight: simulated, and as real processes on eight slots.

    python benchmarks/scale/packing.py             200 simulated shards, ten seeds
    python benchmarks/scale/packing.py --real 60   ... and as processes, so that the least possible is 60 s

The least that any order can take is the longer of two: all devices busy to the end, and the longest shard.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pytest_llamaperf.gates import Decision
from pytest_llamaperf.records import TestRecord
from pytest_llamaperf.runs import RunHeader, run_document, to_json
from pytest_llamaperf.runtimes import installed_versions
from pytest_llamaperf.scaling.contract import Campaign
from pytest_llamaperf.scaling.local import Node
from pytest_llamaperf.scaling.manifest import About, Kind, Manifest, Shard
from pytest_llamaperf.scaling.queueing import Waiting, queue_of, simulated
from pytest_llamaperf.scaling.watching import Lines

NODE, SHARDS = 8, 200


def shards(seed: int, performance: float) -> list[Shard]:
    """As of a gate of 8B, 70B and 405B: most are small, the large ones take longest; a share of them measures."""
    draws = random.Random(seed)
    found = []
    for number in range(SHARDS):
        gpus = draws.choices([1, 2, 4, 8], weights=[45, 25, 18, 12])[0]
        kind: Kind = "performance" if draws.random() < performance else "accuracy"
        minutes = draws.lognormvariate(2.4 + 0.1 * gpus, 0.7)
        found.append(Shard(f"shard-{number}", (), (f"test_{number}",), gpus, kind, minutes, "drawn"))
    return found


def least(given: list[Waiting]) -> float:
    return max(sum(each.demand * each.seconds for each in given) / NODE, *(each.seconds for each in given))


def simulate() -> None:
    print("share that measures alone    times off by    longer than the least, mean and worst of ten")
    for performance in (0.0, 0.3):
        for off in (0.0, 0.5):
            over = []
            for seed in range(10):
                queue, draws = queue_of(shards(seed, performance), NODE, alone=True), random.Random(seed)
                actual = {each.key: each.seconds * draws.uniform(1 / (1 + off), 1 + off) for each in queue}
                end = max(each.end for each in simulated(queue, devices=NODE, actual=actual))
                took = [Waiting(each.key, each.demand, actual[each.key]) for each in queue]
                over.append(end / least(took) - 1)
            print(f"{performance:>24.0%} {off:>15.0%} {sum(over) / len(over):>20.1%} {max(over):>10.1%}")


@dataclass(frozen=True)
class Sleeping(Campaign):
    """Shards that sleep as long as they are expected to take, times `scale`, and leave results."""

    scale: float = 1.0

    def command(self, shard: Shard) -> list[str]:
        program = (
            "import sys, time; time.sleep(float(sys.argv[1])); open(sys.argv[3], 'w').write(open(sys.argv[2]).read())"
        )
        ready, target = self.path / f"{shard.key}.json", self.folder(shard) / "run.json"
        return [
            sys.executable,
            "-I",
            "-S",
            "-c",
            program,
            str(shard.minutes * 60 * self.scale),
            str(ready),
            str(target),
        ]


class Quiet(Lines):
    def tell(self, line: str) -> None:
        if not line.startswith(("started", "ended")):
            super().tell(line)


def really(seconds: float) -> None:
    given = shards(0, 0.0)
    scale = seconds / least(queue_of(given, NODE, alone=True))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        about: dict[str, Any] = {
            "gpu": "cpu",
            "engine": "torch",
            "under_test": "torch",
            "versions": installed_versions(),
        }
        paths = {"directory": name, "root": name, "baselines": name, "gate": False, "gate_file": None, "waivers": None}
        scaled = tuple(
            Shard(s.key, (), s.tests, s.devices, s.kind, s.minutes * scale, s.basis) for s in given
        )  # what is expected of them is what they take
        campaign = Sleeping(Manifest("run", "2026-11-26T10:00:00Z", (), About(**about, **paths), scaled), folder)
        for shard in scaled:
            told = {"run": "run", "key": shard.key}
            header = RunHeader(
                "session", "2026-11-26T10:00:00Z", "cpu", "torch", finished="2026-11-26T10:00:00Z", shard=told
            )
            document = run_document(header, [TestRecord(shard.tests[0], "passed", 1.0)], Decision(("part",)))
            (folder / f"{shard.key}.json").write_text(to_json(document))
        start = time.monotonic()
        outcome = Node(campaign, tuple(map(str, range(NODE))), "machine", Quiet(Console())).run()
        took = time.monotonic() - start
    assert not outcome.without, outcome
    bound = least(queue_of(scaled, NODE, alone=True))
    print(
        f"{len(scaled)} processes on {NODE} slots: {took:.1f} s, the least is {bound:.1f} s: {took / bound - 1:.1%} longer"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=float, metavar="SECONDS", help="also as processes")
    given = parser.parse_args()
    simulate()
    if given.real:
        really(given.real)


if __name__ == "__main__":
    main()
