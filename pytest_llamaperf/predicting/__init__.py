"""What a case should reach: NVIDIA's measured operator times under a simulated in-flight batcher.

operators   seconds of one iteration, memory of one GPU   (aiconfigurator-core)
batching    which requests share which iteration          (virtual time)
calibration from isolated operators to a running engine   (two numbers, with their evidence)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pytest_llamaperf.cases import Case, Layout, Number, Task, Workload
from pytest_llamaperf.catalog import gpu_named
from pytest_llamaperf.errors import DoesNotFit, UsageError
from pytest_llamaperf.lengths import DISTRIBUTIONS, arrival_times, request_lengths
from pytest_llamaperf.limits import Limits, default_limits
from pytest_llamaperf.measurements import Fingerprint
from pytest_llamaperf.metrics import Metric
from pytest_llamaperf.operator_tables import INSTALLED, Tables, decode_attention
from pytest_llamaperf.predicting import operators
from pytest_llamaperf.predicting.batching import Request, Schedule, simulate
from pytest_llamaperf.predicting.calibration import CALIBRATION, UNCALIBRATED, Calibration
from pytest_llamaperf.predicting.operators import Deployment, View
from pytest_llamaperf.traces import Trace, summarize


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, and the tokens the KV cache of one replica holds."""

    capacity: float
    weights: float
    other: float
    kv_cache: float
    kv_tokens: int


@dataclass(frozen=True)
class Prediction:
    """A case in virtual time. mean_batch and peak_batch count sequences of all replicas and pipeline stages."""

    case: Case
    traces: tuple[Trace, ...]
    limits: Limits
    memory: Memory
    iterations: int
    mean_batch: float
    peak_batch: int
    mean_kv: float
    calibration: Calibration
    notes: tuple[str, ...]
    tables: Tables = INSTALLED

    @functools.cached_property
    def values(self) -> Mapping[Metric, float]:
        """Every metric of the run, in base units."""
        return summarize(self.traces, self.case.layout.gpus)

    @property
    def fingerprint(self) -> Fingerprint:
        """The operator tables and settings behind the numbers."""
        core, timed = operators.tables_version(gpu_named(self.case.hardware).operator_tables, self.tables)
        settings = {**asdict(self.calibration), **asdict(self.limits), "decode_attention": decode_attention(timed)}
        settings["cuda_graph_batch_sizes"] = ",".join(map(str, self.limits.cuda_graph_batch_sizes))
        return Fingerprint(
            versions={"aiconfigurator-core": core, "tensorrt-llm (operator tables)": self.tables.version(timed)},
            settings=settings,
        )


def predict(
    case: Case,
    *,
    limits: Limits | None = None,
    calibration: Calibration = CALIBRATION,
    view: View = View.SILICON,
    tables: Tables = INSTALLED,
) -> Prediction:
    """Simulate the whole run of the case; `limits` default to those trtllm-bench would choose.

    With View.PHYSICAL_LIMIT and UNCALIBRATED the result is what arithmetic and bandwidth of the GPU allow at best.
    Raises UsageError for a case that is no workload on a GPU of the tables, DoesNotFit when it needs more memory than
    there is, EngineError where operator times are missing.
    """
    workload = _workload(case)
    gpu_named(case.hardware)  # limits can be chosen for a CPU, operator times cannot
    tables.check(case.hardware)
    deployment = _deployment(case, tables)
    lengths = request_lengths(workload)
    limits = limits or default_limits(case)
    memory = _memory(case, deployment, limits)
    times = operators.operator_times(deployment, view)

    schedules = []
    for lane in _lanes(workload, case.layout, lengths):
        schedule = simulate(
            times,
            lane.requests,
            limits,
            kv_tokens=memory.kv_tokens // lane.sharing,
            concurrency=lane.concurrency,
            calibration=calibration,
        )
        schedules.append((lane.copies, schedule))
    return Prediction(
        case,
        tuple(trace for copies, schedule in schedules for trace in schedule.traces * copies),
        limits,
        memory,
        iterations=max(schedule.iterations for _, schedule in schedules),
        mean_batch=sum(copies * schedule.mean_batch for copies, schedule in schedules),
        peak_batch=sum(copies * schedule.peak_batch for copies, schedule in schedules),
        mean_kv=max(schedule.mean_kv for _, schedule in schedules),
        calibration=calibration,
        notes=_notes(workload, lengths, limits, deployment, [schedule for _, schedule in schedules]),
        tables=tables,
    )


def operator_seconds(prediction: Prediction) -> Mapping[str, Mapping[str, float]]:
    """Seconds of GEMM, attention, all-reduce, pipeline and other, calibrated as the prediction is.

    `decode` is a typical decode iteration of the run, `prompt` an iteration over one whole mean prompt; `decode at best`
    and `prompt at best` are the same at the speed of light of the GPU.
    """
    lanes = prediction.case.layout.dp * prediction.case.layout.pp
    batch, kv = max(1, round(prediction.mean_batch / lanes)), max(1, round(prediction.mean_kv))
    prompt = sum(trace.input_tokens for trace in prediction.traces) // len(prediction.traces)
    deployment = _deployment(prediction.case, prediction.tables)
    found = {}
    for view, suffix, scale in (
        (View.SILICON, "", prediction.calibration.scale),
        (View.PHYSICAL_LIMIT, " at best", UNCALIBRATED.scale),
    ):
        times = operators.operator_times(deployment, view)
        for phase, seconds in (("decode", times.decode_by_kind(batch, kv)), ("prompt", times.prompt_by_kind(prompt))):
            found[phase + suffix] = {kind: scale * part for kind, part in seconds.items()}
    return found


def operator_shares(prediction: Prediction) -> Mapping[str, Mapping[str, float]]:
    """Shares (0 to 1) of kinds of operators in `decode` and `prompt`, as in `operator_seconds`."""
    seconds = operator_seconds(prediction)
    return {phase: _shares(seconds[phase]) for phase in ("decode", "prompt")}


def _shares(seconds: Mapping[str, float]) -> Mapping[str, float]:
    total = sum(seconds.values())
    return {kind: part / total for kind, part in seconds.items()}


def physical_limit(prediction: Prediction) -> Prediction:
    """The same run, every operator at the speed of light of the GPU: nothing real can be faster."""
    return predict(
        prediction.case,
        limits=prediction.limits,
        calibration=UNCALIBRATED,
        view=View.PHYSICAL_LIMIT,
        tables=prediction.tables,
    )


def memory_of(case: Case, limits: Limits | None = None) -> Memory:
    """Memory of one GPU and KV capacity, without simulating anything. Raises DoesNotFit."""
    return _memory(case, _deployment(case, INSTALLED), limits or default_limits(case))


def _workload(case: Case) -> Workload:
    if isinstance(case.work, Task):
        raise UsageError(f"{case}: speed can be predicted, the accuracy of {case.work} cannot")
    return case.work


def _deployment(case: Case, tables: Tables) -> Deployment:
    operators.check_recipe(case.recipe)
    system = gpu_named(case.hardware).operator_tables
    return Deployment(case.model, case.recipe, Layout(case.layout.tp, case.layout.pp), system, tables)


@dataclass(frozen=True)
class _Lane:
    """One batch in flight, `copies` of them alike; `sharing` is how many share the KV cache of their replica."""

    requests: list[Request]
    concurrency: int | None
    sharing: int
    copies: int = 1


def _lanes(workload: Workload, layout: Layout, lengths: Sequence[tuple[int, int]]) -> list[_Lane]:
    """Requests dealt out to replicas and, within each, to as many batches as it has pipeline stages.

    A pipeline of pp stages works on pp batches at once, each the whole model deep, so a batch is simulated for
    itself; with fewer requests in flight than stages the pipeline runs part empty.
    """
    arrivals = arrival_times(workload)
    in_flight = workload.concurrency or len(lengths)
    ways = min(layout.dp * layout.pp, in_flight, len(lengths))
    lanes: list[_Lane] = []
    for number in range(ways):
        lane = _Lane(
            [Request(*lengths[i], arrivals[i] if arrivals else None) for i in range(number, len(lengths), ways)],
            None if workload.concurrency is None else len(range(number, workload.concurrency, ways)),
            sharing=len(range(number % layout.dp, ways, layout.dp)),
        )
        if lanes and dataclasses.replace(lanes[-1], copies=1) == lane:
            lanes[-1] = dataclasses.replace(lane, copies=lanes[-1].copies + 1)
        else:
            lanes.append(lane)
    return lanes


def _memory(case: Case, deployment: Deployment, limits: Limits) -> Memory:
    """Of one GPU, and the tokens one replica can cache: a GPU holds 1/pp of the layers of each of them."""
    gpu = gpu_named(case.hardware)
    used = operators.device_memory(deployment, limits.max_num_tokens)
    free = used.capacity - used.weights - used.other
    if free <= 0:
        gib = 2.0**30
        raise DoesNotFit(
            f"{case.model} {case.recipe} {case.layout}: {used.weights / gib:.1f} GiB of weights and "
            f"{used.other / gib:.1f} GiB of working memory exceed the {used.capacity / gib:.0f} GiB of one {gpu.title}; "
            "use more GPUs (tp, pp) or a smaller recipe"
        )
    cache = free * limits.kv_fraction
    tokens = int(cache * case.layout.pp // used.kv_per_token)
    return Memory(used.capacity, used.weights, used.other, cache, tokens)


def _notes(
    workload: Workload,
    lengths: Sequence[tuple[int, int]],
    limits: Limits,
    deployment: Deployment,
    schedules: Sequence[Schedule],
) -> tuple[str, ...]:
    """What a reader of the numbers must know: everything outside what was measured, and every assumption."""
    notes = operators.beyond_measured(
        deployment,
        prompt=max(isl for isl, _ in lengths),
        iteration=min(limits.max_num_tokens, sum(isl for isl, _ in lengths)),
        sequence=max(isl + osl for isl, osl in lengths),
        batch=max(schedule.peak_batch for schedule in schedules),
        cached=max(schedule.peak_cached for schedule in schedules),
    )
    borrowed = deployment.tables.quantization
    if borrowed and Number.FP8_TENSOR in (deployment.recipe.attention, deployment.recipe.feed_forward):
        notes.append(f"quantizing activations was not timed in {deployment.tables.timed}: that of {borrowed} stands in")
    if workload.lengths != "constant":
        notes.append(DISTRIBUTIONS[workload.lengths].note)
    if deployment.layout.pp > 1 and workload.concurrency != 1:
        notes.append("the pipeline is taken to be full at all times: an upper bound")
    if workload.arrival_rate is not None or (workload.concurrency or 0) > 1:
        notes.append("time to first token below saturation is known to come out too low (0.6x)")
    return tuple(notes)
