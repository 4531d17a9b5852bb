"""What does an operator that got slower cost, and does `llamaperf compare` name it?

    python benchmarks/compare/planted.py [--table gemm_perf] [--times 1.1] [-k '405b or 8b']

Predicts the H200 suites by the installed operator tables and by a copy in which one table's times are longer, and compares the two.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from table_doubles import INSTALLED, slower_tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="gemm_perf", help="its name without .parquet (default: gemm_perf)")
    parser.add_argument("--times", type=float, default=1.1, help="how many times as long (default: 1.1)")
    parser.add_argument("-k", default="405b or 8b", help="which cases, as pytest -k (default: 405b or 8b)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llamaperf-planted-") as name:
        folder = Path(name)
        slower = slower_tables(folder / "tables", asked.times, table=asked.table)
        for results, tables in ((INSTALLED, []), ("slower", [f"--tables={slower}"])):
            predicted = [
                "--gpu=h200",
                "--engine=predicted",
                f"--results={folder / results}",
                "-q",
                "-k",
                asked.k,
                *tables,
            ]
            # Predictions that miss their promise end it with 1.
            if (status := run("pytest", str(ROOT / "suites"), *predicted)) not in (0, 1):
                return status
        return run("llamaperf", "compare", str(folder / INSTALLED), str(folder / "slower"))


def run(command: str, *options: str) -> int:
    """Of the same environment as this script."""
    return subprocess.run([str(Path(sys.executable).with_name(command)), *options], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
