"""Does --against find a planted loss on a CPU, and leave a build alone that is compared with itself?

    python benchmarks/against/demonstrate.py [--same N] [--slower SHARE ...] [-o FILE]

Sessions of pytest over `test_decode.py`, each with engines of its own: the same build on both sides, and one whose decoding steps
take a share longer (`slower/`). Every session adds a line of JSON with its verdicts to FILE; a table of all lines is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KEPT = ROOT / "benchmarks" / "results" / "against-cpu.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--same", type=int, default=10, help="sessions of a build against itself (default: 10)")
    parser.add_argument(
        "--slower", type=float, nargs="*", default=[0.05, 0.10], help="shares planted (default: 0.05 0.1)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path, default=KEPT)
    asked = parser.parse_args()
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    for share in [*asked.slower, *[0.0] * asked.same]:
        with asked.output.open("a", encoding="utf-8") as kept:
            kept.write(json.dumps(session(share, asked.rounds, asked.restarts)) + "\n")
        print(table(asked.output)[-1], flush=True)
    print("\n".join(table(asked.output)))


def session(share: float, rounds: int, restarts: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="llamaperf-against-") as folder:
        command = [
            sys.executable, "-m", "pytest", str(HERE / "test_decode.py"), "-q", "-p", "no:cacheprovider", "--gpu=cpu",
            f"--rounds={rounds}", f"--restarts={restarts}", f"--against={HERE / 'as_it_is.yaml'}", f"--results={folder}",
        ]  # fmt: skip
        given = {"PYTHONPATH": str(HERE / "slower"), "SLOWER_DECODE": str(share), "HF_HUB_OFFLINE": "1"}
        began = time.monotonic()
        found = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - began
        run = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    (said,) = [line for line in found.stdout.splitlines() if line.startswith("against ")] or ["nothing"]
    return {
        "planted": share,
        "verdicts": {r["metric"] or "all": [r["outcome"], r["message"]] for r in run["results"]},
        "said": said,
        "seconds": round(seconds),
        "when": run["run"]["started"],
        "machine": {**run["run"]["fingerprint"], "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": run["run"]["versions"],
        "rounds": rounds,
        "restarts": restarts,
    }


def table(path: Path) -> Sequence[str]:
    rows = ["| planted | throughput | TPOT | found of throughput | seconds |", "|---|---|---|---|---|"]
    for line in path.read_text(encoding="utf-8").splitlines():
        kept = json.loads(line)
        verdicts = kept["verdicts"]
        (throughput, message), (tpot, _) = (
            verdicts.get(name) or verdicts.get("all", ["-", "-"]) for name in ("output_throughput", "tpot_median")
        )
        rows.append(f"| {kept['planted']:.0%} | {throughput} | {tpot} | {message} | {kept['seconds']} |")
    return rows


if __name__ == "__main__":
    main()
