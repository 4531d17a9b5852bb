"""How long planning takes as shards grow: from what pytest collected to a manifest on disk, and reading it back.

    python benchmarks/scale/planning.py [SHARDS ...]

Collection itself is pytest's: some 2 ms for a test (`pytest suites/ --collect-only`).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from pytest_llamaperf.scaling.inventory import Inventory, NeededEngine, NeededTest, Work
from pytest_llamaperf.scaling.manifest import NAME, About, read_manifest
from pytest_llamaperf.scaling.planning import planned

ABOUT = About("h200", "tensorrt-llm", "tensorrt-llm", {}, "/suites", "/suites", "/suites/baselines", False, None, None)


def inventory(shards: int) -> Inventory:
    """Four tests a shard, two of which compare it with a second engine; every tenth needs a checkpoint others need too."""
    engines, tests = {}, []
    for number in range(shards):
        names = [f"h200/tensorrt-llm/llama-{number}/{recipe}/tp8/0a1b2c3d" for recipe in ("modelopt-fp8", "bf16")]
        checkpoint = f"llama-{number % 100}/modelopt-fp8" if number % 10 == 0 else None
        engines |= {name: NeededEngine(2 ** (number % 4), 60.0 + number % 600, checkpoint) for name in names}
        for test in range(4):
            needed = tuple(names[: 1 + test % 2])
            work = tuple(Work(name, f"{name}/max-throughput-{test}", 2, 30.0, True) for name in needed)
            tests.append(NeededTest(f"suites/test_throughput.py::test_{test}[{names[0]}/{test}]", needed, work))
    return Inventory(vars(ABOUT), tuple(tests), engines)


def main() -> None:
    print("shards    tests  plan and write     read back   manifest")
    for shards in [int(number) for number in sys.argv[1:]] or [100, 1_000, 10_000]:
        found = inventory(shards)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / NAME
            start = time.perf_counter()
            planned(found, id="run", now="2026-11-26T10:00:00Z", options=["suites"]).manifest.write(path)
            written = time.perf_counter()
            count = len(read_manifest(path).shards)
            read = time.perf_counter()
            size = path.stat().st_size / 1e6
        print(
            f"{count:>6,} {len(found.tests):>8,} {written - start:>13.2f} s {read - written:>11.2f} s {size:>7.1f} MB"
        )


if __name__ == "__main__":
    main()
