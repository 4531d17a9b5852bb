"""How long a page takes and how large it is, by the number of values of its run; drawn to growth.svg beside this file.

    python benchmarks/report/growth.py

The runs are made up, like those of a suite that grew: all models, recipes, layouts, lengths and scenarios, with intervals,
operators and notes; one value in fifty is a regression, one in a hundred an error. Every value has a history of ten versions.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from pathlib import Path

import vl_convert

from pytest_llamaperf.gates import decide
from pytest_llamaperf.observations import Observation, observations_of
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.report.page import page
from pytest_llamaperf.runs import Run, RunHeader

SIZES = (10, 100, 300, 1000, 3000)
SECONDS, MEBIBYTES = 5.0, 6.0  # what a page of 1,000 values may take
MODELS = ("llama-3.1-405b", "llama-3.3-70b", "llama-3.1-8b", "llama-2-70b", "llama-3.2-3b")
RECIPES = ("bf16", "modelopt-fp8", "llama-fp8")
LAYOUTS = ((1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (1, 8))
LENGTHS = (
    (128, 128),
    (128, 2048),
    (1000, 1000),
    (2048, 128),
    (5000, 500),
    (20000, 2000),
    (32768, 2048),
    (120000, 2048),
)
SCENARIOS = ("min-latency", "concurrency-16", "concurrency-64", "concurrency-256", "max-throughput")


def result(
    drawn: random.Random, model: str, recipe: str, layout: tuple[int, int], isl: int, osl: int, scenario: str
) -> Result:
    tp, pp = layout
    name = f"tp{tp}" if pp == 1 else f"pp{pp}" if tp == 1 else f"tp{tp}-pp{pp}"
    case = {
        "id": f"h200/tensorrt-llm/{model}/{recipe}/{name}/{scenario}-{isl}-{osl}", "hardware": "h200",
        "engine": "tensorrt-llm", "model": model, "recipe": recipe, "layout": name, "tp": tp, "pp": pp, "dp": 1,
        "workload": scenario, "isl": isl, "osl": osl, "lengths": "constant", "requests": 1000, "task": None,
    }  # fmt: skip
    promised = drawn.lognormvariate(6, 1)
    value = promised * drawn.gauss(1.0, 0.02)
    outcome = drawn.choices(("pass", "regression", "error", "inconclusive"), (95, 2, 1, 2))[0]
    value *= 0.8 if outcome == "regression" else 1.0
    node = f"suites/test_throughput.py::test_throughput[{case['id']}]"
    if outcome == "error":
        return Result.of_error(
            node, case, "the engine's process died while it was loading: signal 9\n" + "log line\n" * 20
        )
    return Result(
        node, case, "output_throughput", "tok/s", "higher", "measured", (value, value * 1.01, value * 0.99), value,
        value * 0.985, value * 1.015,
        {"value": promised, "tolerance": 0.1, "source": "published", "reference": "made up", "recorded": {},
         "file": f"baselines/h200/{model}.yaml", "line": 7},
        outcome, f"output_throughput measured {value:.1f} tok/s, promised {promised:.1f} tok/s",
        ("extrapolated, not measured: prompts beyond 16,384 tokens",),
        {"versions": {"tensorrt_llm": "1.2.1"}, "settings": {"max_batch_size": isl, "max_num_tokens": 8192}},
        f"trtllm-bench --model {model} throughput --tp {tp} --pp {pp} --dataset requests-{isl}-{osl}.txt --concurrency 64",
        {phase: {kind: drawn.random() / 100 for kind in ("GEMM", "attention", "all-reduce", "other")}
         for phase in ("decode", "prompt", "decode at best", "prompt at best")},
        {"output_throughput": value, "tpot_median": drawn.lognormvariate(-4, 0.5)},
    )  # fmt: skip


def run_of(size: int) -> Run:
    drawn = random.Random(7)
    every = itertools.cycle(itertools.product(MODELS, LENGTHS, RECIPES, LAYOUTS, SCENARIOS))
    results = [result(drawn, model, recipe, layout, *lengths, scenario)
               for model, lengths, recipe, layout, scenario in itertools.islice(every, 0, size * 3, 3)]  # fmt: skip
    tests = [TestRecord(r.nodeid, "passed" if r.outcome == "pass" else "failed", 1.0, "", (r,), str(r.case["id"]), 1, True)
             for r in results]  # fmt: skip
    header = RunHeader("made-up", "2026-11-22T10:00:00Z", "h200", "tensorrt-llm", {"pytest_llamaperf": "0.1.0"},
                       {"gpus": ["H200"] * 8, "driver": "570.1"}, "2026-11-22T12:00:00Z")  # fmt: skip
    return Run(header, tuple(tests), decide(tests))


def history_of(run: Run) -> list[Observation]:
    """Ten versions of every value, of which the last five are slower in one of a hundred."""
    drawn = random.Random(8)
    found = []
    for each in observations_of(run):
        slower = 0.93 if drawn.random() < 0.01 else 1.0
        for minor in range(10):
            value = each.value * drawn.gauss(1.0, 0.003) * (slower if minor >= 5 else 1.0)
            found.append(
                dataclasses.replace(each, version=f"1.1.{minor}", run=f"1.1.{minor}", value=value, outcome="pass")
            )
    return found


def main() -> None:
    page(run_of(1))  # imports and the start of Vega, half a second, are paid once
    found = []
    print("| values | seconds | MiB |\n|---|---|---|")
    for size in SIZES:
        run = run_of(size)
        known = history_of(run)
        start = time.perf_counter()
        text = page(run, known)
        seconds, mebibytes = time.perf_counter() - start, len(text.encode()) / 2**20
        found.append({"values": size, "seconds": seconds, "MiB": mebibytes})
        print(f"| {size:,} | {seconds:.2f} | {mebibytes:.2f} |")
        if size <= 1000 and (seconds > SECONDS or mebibytes > MEBIBYTES):
            raise SystemExit(f"a page of {size:,} values took {seconds:.1f} s and {mebibytes:.1f} MiB")
    x = {"field": "values", "type": "quantitative", "scale": {"type": "log"}, "title": "values in the run"}
    charts = [
        {"mark": {"type": "line", "point": True}, "encoding": {"x": x, "y": {"field": field, "type": "quantitative"}}}
        for field in ("seconds", "MiB")
    ]
    spec = {"data": {"values": found}, "background": "white", "hconcat": charts}
    (Path(__file__).parent / "growth.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")


if __name__ == "__main__":
    main()
