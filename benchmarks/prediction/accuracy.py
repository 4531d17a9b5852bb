"""How close predictions come to NVIDIA's published trtllm-bench throughput, and how the calibration was found.

    python benchmarks/prediction/accuracy.py          # errors by version, model and shape, with the calibration in use
    python benchmarks/prediction/accuracy.py --fit    # also fit it anew to the 0.20.0 rows; the 1.0 rows stay unseen

Every row is predicted with the settings the performance overview documents: KV fraction 0.95, its CUDA graph sizes,
its request counts, no chunked prefill, batch limits by trtllm-bench's heuristic. About one minute on two cores.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pytest_llamaperf import Case, Layout, model_named, recipe_named, workload_named
from pytest_llamaperf.limits import default_limits
from pytest_llamaperf.predicting import predict
from pytest_llamaperf.predicting.calibration import CALIBRATION, UNCALIBRATED, Calibration

PUBLISHED = Path(__file__).with_name("published_throughput.csv")


@dataclass(frozen=True)
class Row:
    """A published value in tok/s, and the seconds the uncalibrated simulator needs for the same tokens."""

    version: str
    gpu: str
    model: str
    tp: int
    shape: str
    published: float
    tokens: int
    requests: int
    operator_seconds: float

    def error(self, calibration: Calibration) -> float:
        """Relative error of the prediction.

        With all requests offered at once the schedule does not depend on how long an iteration takes, so the time
        of the run is linear in both numbers of the calibration, and a fit needs no further simulation.
        """
        seconds = calibration.scale * self.operator_seconds + calibration.request_seconds * self.requests
        return self.tokens / seconds / self.published - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the calibration to the 0.20.0 rows")
    parser.add_argument("--at-most", type=float, metavar="PERCENT", help="exit 1 if a version's MAPE is above this")
    arguments = parser.parse_args()
    with PUBLISHED.open(newline="") as file:
        published = list(csv.DictReader(file))
    with ProcessPoolExecutor(max_workers=2) as pool:
        rows = list(track(pool.map(simulated, published), total=len(published), description="predicting"))

    console = Console(width=120)
    if arguments.fit:
        seen = [row for row in rows if row.version == "0.20.0"]
        for name, found in {
            "nothing fitted": UNCALIBRATED,
            "one factor": fitted(seen, per_request=False),
            "a factor, and a time per request": fitted(seen, per_request=True),
        }.items():
            console.print(f"{name}: {found.scale:.4f}, {found.request_seconds * 1e3:.2f} ms;", *(
                f"MAPE of {version} {mape(row.error(found) for row in rows if row.version == version):.1%}"
                for version in ("0.20.0", "1.0")
            ))  # fmt: skip
    for title, key in GROUPS.items():
        console.print(error_table(title, rows, key))
    if arguments.at_most is not None:
        for version in ("0.20.0", "1.0"):
            found_error = mape(row.error(CALIBRATION) for row in rows if row.version == version) * 100
            if found_error > arguments.at_most:
                sys.exit(f"MAPE of {version} is {found_error:.1f} %, above {arguments.at_most:g} %")


def simulated(published: dict[str, str]) -> Row:
    """One row of the published table, run through the simulator with nothing calibrated."""
    workload = workload_named(f"max-throughput-{published['isl']}-{published['osl']}")
    case = Case(
        published["gpu"],
        "tensorrt-llm",
        model_named(published["model"]),
        recipe_named("modelopt-fp8"),
        Layout(tp=int(published["tp"])),
        workload,
    )
    limits = default_limits(case, kv_fraction=0.95, chunked_prefill=False)
    prediction = predict(case, limits=limits, calibration=UNCALIBRATED)
    return Row(
        published["trtllm_version"],
        case.hardware,
        case.model.name,
        case.layout.tp,
        f"{workload.isl}/{workload.osl}",
        float(published["output_throughput_tok_s"]),
        tokens=sum(trace.output_tokens for trace in prediction.traces),
        requests=len(prediction.traces),
        operator_seconds=max(trace.last_token for trace in prediction.traces),
    )


def fitted(rows: Sequence[Row], *, per_request: bool) -> Calibration:
    """The calibration with the least mean absolute relative error on these rows."""
    from scipy.optimize import minimize

    def calibration(parameters: Sequence[float]) -> Calibration:
        scale, milliseconds = parameters
        return Calibration(scale, max(milliseconds, 0.0) * 1e-3 if per_request else 0.0, "")

    def loss(parameters: Sequence[float]) -> float:
        return mape(row.error(calibration(parameters)) for row in rows)

    best = min(
        (minimize(loss, start, method="Nelder-Mead") for start in ([1.0, 0.1], [1.05, 0.5], [1.1, 1.0])),
        key=lambda found: float(found.fun),
    )
    return calibration(best.x)


GROUPS: dict[str, Callable[[Row], str]] = {
    "by TensorRT-LLM version (0.20.0 was fitted to, 1.0 was not)": lambda row: row.version,
    "by model, GPU and layout": lambda row: f"{row.model} {row.gpu} tp{row.tp} ({row.version})",
    "by ISL/OSL": lambda row: row.shape,
}


def error_table(title: str, rows: Sequence[Row], key: Callable[[Row], str]) -> Table:
    table = Table(title=title, title_justify="left", box=MARKDOWN)
    table.add_column("")
    for heading in ("rows", "MAPE", "bias", "worst", "within 10 %", "uncalibrated MAPE"):
        table.add_column(heading, justify="right")
    for name in [*sorted({key(row) for row in rows}), "all"]:
        group = [row for row in rows if name in (key(row), "all")]
        errors = [row.error(CALIBRATION) for row in group]
        table.add_row(
            name,
            str(len(group)),
            f"{mape(errors) * 100:.1f} %",
            f"{math.expm1(sum(math.log1p(e) for e in errors) / len(errors)) * 100:+.1f} %",
            f"{max(errors, key=abs) * 100:+.1f} %",
            f"{sum(abs(e) <= 0.1 for e in errors) / len(errors):.0%}",
            f"{mape(row.error(UNCALIBRATED) for row in group) * 100:.1f} %",
        )
    return table


def mape(errors: Iterable[float]) -> float:
    """Mean absolute relative error."""
    absolute = [abs(error) for error in errors]
    return sum(absolute) / len(absolute)


if __name__ == "__main__":
    main()
