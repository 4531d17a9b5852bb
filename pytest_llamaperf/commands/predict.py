"""`llamaperf predict`: what cases should reach by NVIDIA's operator times, one in detail or many in a table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from pytest_llamaperf.cases import SCENARIOS, Case, Layout, Model, Recipe, Workload
from pytest_llamaperf.catalog import gpu_named, gpus, model_named, models, recipe_named, recipes, workload_named
from pytest_llamaperf.commands.names import Names, flat
from pytest_llamaperf.commands.outputs import write
from pytest_llamaperf.commands.tables import completed_versions
from pytest_llamaperf.errors import DoesNotFit, LlamaperfError, UsageError
from pytest_llamaperf.operator_tables import INSTALLED, Tables, tables_named
from pytest_llamaperf.wording import amount

if TYPE_CHECKING:
    from pytest_llamaperf.predicting import Prediction

_COMMON_LENGTHS = (
    "128/128",
    "128/2048",
    "1000/1000",
    "2048/128",
    "5000/500",
    "20000/2000",
    "32768/2048",
    "120000/2048",
)


# Below this many columns a table loses its names; the terminal breaks the lines instead.
_NARROWEST = 78


def _lengths(text: str) -> str:
    isl, slash, osl = text.partition("/")
    if not slash or not isl.isdecimal() or not osl.isdecimal() or not int(isl) or not int(osl):
        raise UsageError(f"lengths are written ISL/OSL in tokens, as in 2048/128, not {text!r}")
    return f"{int(isl)}-{int(osl)}"


def _layout_names() -> list[str]:
    return [str(Layout(tp, pp)) for tp in (1, 2, 4, 8) for pp in (1, 2, 4, 8)]


@click.command(short_help="What cases should reach by NVIDIA's operator times.")
@click.argument("model", type=Names("model", models, model_named), metavar="MODEL[,MODEL...]")
@click.option(
    "--gpu", "hardware", type=Names("gpu", gpus, gpu_named), default="h200", show_default=True, help="GPU to predict."
)
@click.option(
    "--recipe",
    type=Names("recipe", recipes, recipe_named),
    multiple=True,
    default=["modelopt-fp8"],
    show_default=True,
    help="Quantization recipe: bf16, modelopt-fp8, llama-fp8.",
)
@click.option(
    "--layout",
    type=Names("layout", _layout_names, Layout.parse),
    multiple=True,
    help="GPUs of one case: tp8, pp8, tp4-pp2, tp2-dp4.  [default: tp8]",
)
@click.option("--gpus", type=click.IntRange(1, 64), help="Instead of --layout: every TP x PP layout of this many GPUs.")
@click.option(
    "--workload",
    type=Names("workload", lambda: SCENARIOS[:2], str),
    multiple=True,
    default=["max-throughput"],
    show_default=True,
    help="max-throughput, min-latency, concurrency-64, rate-2.5 (requests per second).",
)
@click.option(
    "--lengths",
    type=Names("lengths", lambda: _COMMON_LENGTHS, _lengths),
    multiple=True,
    default=["2048/128"],
    show_default=True,
    help="ISL/OSL: tokens in and out of a request.",
)
@click.option(
    "--tables",
    metavar="VERSION",
    shell_complete=completed_versions,
    help="Operator times of that TensorRT-LLM, got by `llamaperf tables fetch`, or of a folder of your own.",
)
@click.option("--json", "json_path", metavar="FILE", help="Write all that is known as JSON; - for standard output.")
def predict(
    model: list[Model],
    hardware: list[Any],
    recipe: tuple[list[Recipe], ...],
    layout: tuple[list[Layout], ...],
    gpus: int | None,
    workload: tuple[list[str], ...],
    lengths: tuple[list[str], ...],
    tables: str | None,
    json_path: str | None,
) -> None:
    """Predict MODEL on a GPU it need not have: throughput, latency, memory, and what bounds them.

    \b
    One case in detail:
      llamaperf predict llama-3.1-405b --layout tp8 --lengths 2048/128
    A sweep; every option takes several values, separated by commas:
      llamaperf predict llama-3.1-405b --gpus 8 --lengths 2048/128,20000/2000 --recipe modelopt-fp8,llama-fp8

    Predictions are within 10 % of published throughput nine times out of ten; they are no measurements.
    """
    if layout and gpus:
        raise click.UsageError("--gpus chooses the layouts; leave out --layout")
    wanted = [
        _Wanted(gpu.name, m, r, chosen, f"{scenario}-{shape}")
        for m in model
        for gpu in hardware
        for scenario in flat(workload)
        for r in flat(recipe)
        for chosen in (_layouts_of(m, gpus) if gpus else flat(layout) or [Layout(tp=8)])
        for shape in flat(lengths)
    ]
    outcomes = list(_predicted(wanted, INSTALLED if tables is None else tables_named(tables)))
    if json_path:
        _write_json(json_path, outcomes)
    if json_path != "-":
        _show(outcomes)
    problems = [outcome for _, outcome in outcomes if isinstance(outcome, LlamaperfError)]
    if len(problems) == len(outcomes):
        sys.exit(2 if all(isinstance(problem, (UsageError, DoesNotFit)) for problem in problems) else 1)


def _layouts_of(model: Model, gpus: int) -> list[Layout]:
    """Every way to lay the model out over this many GPUs, tensor parallelism first."""
    from pytest_llamaperf.cases import check_layout

    fitting = []
    for tp in range(gpus, 0, -1):
        if gpus % tp:
            continue
        try:
            check_layout(model, Layout(tp, gpus // tp))
        except UsageError:
            continue
        fitting.append(Layout(tp, gpus // tp))
    if not fitting:
        raise UsageError(f"{model} cannot be laid out over {gpus} GPUs")
    return fitting


@dataclass(frozen=True)
class _Wanted:
    """The parts of one case; not every combination of a sweep makes one."""

    hardware: str
    model: Model
    recipe: Recipe
    layout: Layout
    workload: str

    @property
    def id(self) -> str:
        return f"{self.hardware}/tensorrt-llm/{self.model}/{self.recipe}/{self.layout}/{self.workload}"

    def case(self) -> Case:
        """Raises UsageError."""
        work = workload_named(self.workload)
        return Case(self.hardware, "tensorrt-llm", self.model, self.recipe, self.layout, work)


_Outcome = tuple[_Wanted, "Prediction | LlamaperfError"]


def _predicted(wanted: list[_Wanted], tables: Tables) -> Iterable[_Outcome]:
    """With a progress bar where there is more than one, and the error in place of a prediction that cannot be.

    Raises UsageError if the only one wanted is no case.
    """
    from rich.console import Console
    from rich.progress import track

    from pytest_llamaperf import predicting

    console = Console(stderr=True)
    for one in track(wanted, description="predicting", console=console, transient=True, disable=len(wanted) == 1):
        try:
            yield one, predicting.predict(one.case(), tables=tables)
        except LlamaperfError as problem:
            if isinstance(problem, UsageError) and len(wanted) == 1:
                raise
            yield one, problem


def _show(outcomes: list[_Outcome]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, _NARROWEST)
    predictions = [outcome for _, outcome in outcomes if not isinstance(outcome, LlamaperfError)]
    if len(outcomes) == 1 and predictions:
        _show_one(console, predictions[0])
    elif predictions:
        for title, group in groupby(predictions, key=_title):
            console.print(title, style="bold")
            console.print(_table(list(group), width=console.width))
            console.print()
        for note in dict.fromkeys(note for prediction in predictions for note in prediction.notes):
            console.print(f"note: {note}", style="dim")
    for wanted, outcome in outcomes:
        if isinstance(outcome, LlamaperfError):
            console.print(f"{wanted.id}\n  cannot be: {outcome}", style="yellow")


def _table(predictions: list[Prediction], *, width: int) -> Any:
    """One row a prediction."""
    from rich.table import Table

    from pytest_llamaperf import metrics

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("recipe", "layout", "ISL/OSL"):
        table.add_column(heading, header_style="dim", overflow="fold")
    numbers = ["tok/s", "per GPU", "TTFT", "TPOT", "batch"] + (["KV tokens"] if width >= 100 else [])
    for heading in numbers:
        table.add_column(heading, justify="right", header_style="dim", no_wrap=True)
    for prediction in predictions:
        case, values = prediction.case, prediction.values
        cells = {
            "tok/s": amount(values[metrics.OUTPUT_THROUGHPUT], "tok/s").removesuffix(" tok/s"),
            "per GPU": amount(values[metrics.OUTPUT_THROUGHPUT_PER_GPU], "tok/s").removesuffix(" tok/s"),
            "TTFT": amount(values[metrics.TTFT_MEDIAN], "s"),
            "TPOT": amount(values[metrics.TPOT_MEDIAN], "s") if metrics.TPOT_MEDIAN in values else "-",
            "batch": f"{prediction.mean_batch:,.0f}",
            "KV tokens": f"{prediction.memory.kv_tokens:,}",
        }
        shape = str(case.work).removeprefix(f"{_scenario(prediction)}-").replace("-", "/")
        table.add_row(str(case.recipe), str(case.layout), shape, *(cells[number] for number in numbers))
    return table


def _title(prediction: Prediction) -> str:
    """What the rows of one table have in common."""
    return f"{prediction.case.model} on {prediction.case.hardware} | {_scenario(prediction)}, predicted"


def _scenario(prediction: Prediction) -> str:
    work = prediction.case.work
    return work.scenario if isinstance(work, Workload) else str(work)


def _show_one(console: Any, prediction: Prediction) -> None:
    from rich.table import Table

    from pytest_llamaperf import metrics
    from pytest_llamaperf.predicting import operator_shares, physical_limit

    best = physical_limit(prediction).values
    console.print(f"{prediction.case.id}, predicted", style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 2))
    table.add_column("metric", header_style="dim")
    for heading in ("predicted", "physical limit", "reached"):
        table.add_column(heading, justify="right", header_style="dim")
    for metric, value in prediction.values.items():
        reached = value / best[metric] if metric.better is metrics.Better.HIGHER else best[metric] / value
        table.add_row(
            metric.name, amount(value, metric.unit), amount(best[metric], metric.unit), f"{reached * 100:.0f} %"
        )
    console.print(table)
    memory, limits = prediction.memory, prediction.limits
    shares = operator_shares(prediction)
    fingerprint = prediction.fingerprint
    for name, text in {
        "one GPU": f"{amount(memory.weights, 'B')} weights, {amount(memory.kv_cache, 'B')} KV cache, "
        f"{amount(memory.other, 'B')} other, of {amount(memory.capacity, 'B')}",
        "KV cache": f"{memory.kv_tokens:,} tokens",
        "batch": f"mean {prediction.mean_batch:,.0f}, peak {prediction.peak_batch:,}; limits: "
        f"{limits.max_batch_size:,} requests, {limits.max_num_tokens:,} tokens an iteration",
        "a decode step": _listed(shares["decode"]),
        "a prompt": _listed(shares["prompt"]),
        "from": ", ".join(f"{package} {version}" for package, version in fingerprint.versions.items()),
        **{f"note {n + 1}": note for n, note in enumerate(prediction.notes)},
    }.items():
        console.print(f"  {name:<15}{text}", soft_wrap=True)


def _listed(shares: Mapping[str, float]) -> str:
    """Largest first, without what rounds to nothing."""
    largest_first = sorted(shares.items(), key=lambda share: -share[1])
    return ", ".join(f"{kind} {share:.0%}" for kind, share in largest_first if share >= 0.005)


def _write_json(path: str, outcomes: list[_Outcome]) -> None:
    from pytest_llamaperf.runs import to_json

    document = {"schema": 1, "predictions": [_as_json(wanted, outcome) for wanted, outcome in outcomes]}
    write("--json", path, to_json(document, indent=1) + "\n")


def _as_json(wanted: _Wanted, outcome: Prediction | LlamaperfError) -> dict[str, object]:
    from pytest_llamaperf import metrics
    from pytest_llamaperf.predicting import operator_seconds, operator_shares, physical_limit

    if isinstance(outcome, LlamaperfError):
        return {"case": {"id": wanted.id}, "error": str(outcome)}
    limit = physical_limit(outcome).values[metrics.OUTPUT_THROUGHPUT]
    return {
        "case": outcome.case.to_dict(),
        "source": "predicted",
        "metrics": {m.name: {"value": value, "unit": m.unit} for m, value in outcome.values.items()},
        "memory": asdict(outcome.memory),
        "limits": asdict(outcome.limits),
        "mean_batch": outcome.mean_batch,
        "peak_batch": outcome.peak_batch,
        "operator_shares": {phase: dict(shares) for phase, shares in operator_shares(outcome).items()},
        "operator_seconds": operator_seconds(outcome),
        "physical_limit": {"output_throughput": limit},
        "notes": list(outcome.notes),
        "fingerprint": outcome.fingerprint.to_dict(),
    }
