"""The models, GPUs, recipes and request counts known by name, read from the YAML files beside this module."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llamaperf.cases import SCENARIO, SCENARIOS, Case, Layout, Model, Number, Recipe, Workload
from pytest_llamaperf.catalog.hub import hub_cache, snapshot_of
from pytest_llamaperf.documents import Section, read_document
from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.lengths import DISTRIBUTIONS

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Gpu:
    """One GPU product. Bytes, bytes per second, dense floating-point operations per second."""

    name: str
    title: str
    memory: int
    memory_bandwidth: float
    bf16_flops: float
    fp8_flops: float
    link_bandwidth: float
    nvml_names: tuple[str, ...]
    operator_tables: str
    source: str

    def __str__(self) -> str:
        return self.name


@functools.cache
def models() -> dict[str, Model]:
    return {name: _model(name, section) for name, section in read_document(_HERE / "models.yaml").sections()}


@functools.cache
def gpus() -> dict[str, Gpu]:
    return {name: _gpu(name, section) for name, section in read_document(_HERE / "gpus.yaml").sections()}


@functools.cache
def recipes() -> dict[str, Recipe]:
    return {name: _recipe(name, section) for name, section in read_document(_HERE / "recipes.yaml").sections()}


def model_named(name: str) -> Model:
    """A model of the catalog, or of a Hugging Face checkpoint directory if `name` is the path of one.

    `NAME@random` is a network of that shape with drawn weights, `NAME@random@layers=N` one of N layers: for speed
    where values do not matter, built where it runs. An id on Hugging Face is the catalog's model that comes from there,
    or what lies in the cache. Raises UsageError with the nearest name for an unknown one.
    """
    if name in models():
        return models()[name]
    shape, *changes = name.split("@")
    if changes and shape in models():
        return _varied(models()[shape], name, changes)
    with contextlib.suppress(OSError):  # a name too long for a path, or a folder that may not be read
        if (Path(name) / "config.json").is_file():
            return _model_of_checkpoint(Path(name))
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return _model_of_repository(name)
    raise UsageError(f"unknown model {name!r}; {nearest(name, models())}; or the path of a Hugging Face checkpoint")


def _model_of_repository(repository: str) -> Model:
    for model in models().values():
        if repository in (model.source, *model.published.values()):
            return model
    if snapshot := snapshot_of(repository):
        return _model_of_checkpoint(snapshot, repository.rpartition("/")[2].lower())
    raise UsageError(
        f"unknown model {repository!r}: it is not in the catalog, no folder with a config.json, and not in the cache of "
        f"Hugging Face, {hub_cache()}; run `hf download {repository}`, or name one of the catalog; "
        f"{nearest(repository, models())}"
    )


def _varied(model: Model, name: str, changes: Sequence[str]) -> Model:
    layers = re.fullmatch(r"layers=([1-9][0-9]{0,3})", changes[-1])
    if changes not in (["random"], ["random", changes[-1]]) or (len(changes) == 2 and layers is None):
        raise UsageError(f"unknown variant {name!r}; write {model.name}@random, or {model.name}@random@layers=2")
    return dataclasses.replace(
        model,
        name=name,
        random=True,
        layers=int(layers[1]) if layers else model.layers,
        source="drawn at random",
        published={},
    )


def gpu_named(name: str) -> Gpu:
    """Raises UsageError with the nearest name for an unknown one."""
    if name not in gpus():
        raise UsageError(f"unknown GPU {name!r}; {nearest(name, gpus())}")
    return gpus()[name]


def recipe_named(name: str) -> Recipe:
    """Raises UsageError with the nearest name for an unknown one."""
    if name not in recipes():
        raise UsageError(f"unknown recipe {name!r}; {nearest(name, recipes())}")
    return recipes()[name]


def workload_named(text: str) -> Workload:
    """`max-throughput-2048-128`, `min-latency-2048-128`, `concurrency-64-2048-128`, `rate-100.35-openorca` ...

    The number of requests comes from `workloads.yaml`. Raises UsageError for anything else.
    """
    shaped = re.fullmatch(rf"({SCENARIO})-(?:([1-9][0-9]{{0,8}})-([1-9][0-9]{{0,8}})|([a-z]\w*))", text)
    if shaped is None:
        raise UsageError(
            f"unknown workload {text!r}; write SCENARIO-ISL-OSL, as in max-throughput-2048-128, or SCENARIO-LENGTHS, "
            f"as in max-throughput-openorca; scenarios: {', '.join(SCENARIOS)}"
        )
    scenario, isl, osl, name = shaped.groups()
    if name is None:
        shape = (int(isl), int(osl))
        return Workload(scenario, *shape, requests=_requests(scenario, *shape))
    if name not in DISTRIBUTIONS:
        raise UsageError(f"unknown lengths {name!r} in workload {text!r}; {nearest(name, DISTRIBUTIONS)}")
    drawn = DISTRIBUTIONS[name]
    requests = _request_counts().min_latency if scenario == "min-latency" else drawn.requests
    return Workload(scenario, drawn.isl, drawn.osl, requests=requests, lengths=name)


def case_of_key(hardware: str, key: str) -> Case:
    """The case written as a key of a baseline file, `tensorrt-llm/llama-3.1-8b/bf16/tp1/min-latency-128-128`.

    Raises UsageError naming the part that is wrong.
    """
    parts = key.split("/")
    if len(parts) != 5:
        raise UsageError(f"a case is written engine/model/recipe/layout/workload, not {key!r}")
    engine, model, recipe, layout, work = parts
    if model in (".", ".."):  # elsewhere a model may be named by its folder; a file that is reviewed names it by name
        raise UsageError(f"{model!r} is no model; {nearest(model, models())}")
    return Case(hardware, engine, model_named(model), recipe_named(recipe), Layout.parse(layout), workload_named(work))


def check_weights(case: Case) -> None:
    """Refuse a case whose weights alone do not fit; whether a KV cache fits beside them is known when it is run.

    Raises UsageError with the GPUs it would take.
    """
    gpu = gpus().get(case.hardware)
    weights = case.recipe.weight_bytes(case.model)
    share = weights / (case.layout.tp * case.layout.pp)
    if gpu and share > gpu.memory:
        gib = 2.0**30
        raise UsageError(
            f"{case.model} {case.recipe} {case.layout}: {share / gib:.1f} GiB of weights on each GPU, and a {gpu.title} "
            f"has {gpu.memory / gib:.1f} GiB; spread them over at least {math.ceil(weights / gpu.memory)} GPUs (tp, pp), "
            "or use a smaller recipe"
        )


def _requests(scenario: str, isl: int, osl: int) -> int:
    counts = _request_counts()
    if scenario == "min-latency":
        return counts.short.get(f"{isl}/{osl}", counts.min_latency)
    published = counts.published.get(f"{isl}/{osl}")
    return published or min(max(counts.token_budget // (isl + osl), counts.least), counts.most)


@dataclass(frozen=True)
class _RequestCounts:
    published: dict[str, int]
    token_budget: int
    least: int
    most: int
    min_latency: int
    short: dict[str, int]


@functools.cache
def _request_counts() -> _RequestCounts:
    document = read_document(_HERE / "workloads.yaml")
    shapes, short = document.section("requests"), document.section("min_latency")
    return _RequestCounts(
        published={shape: shapes.whole(shape, least=1) for shape in shapes},
        token_budget=document.whole("token_budget", least=1),
        least=document.whole("least", least=1),
        most=document.whole("most", least=1),
        min_latency=document.whole("min_latency_requests", least=1),
        short={shape: short.whole(shape, least=1) for shape in short},
    )


def _model(name: str, entry: Section) -> Model:
    entry.only(*(field.name for field in dataclasses.fields(Model) if field.name != "random"))
    rope = entry.section("rope")
    published = entry.section("published") if "published" in entry else None
    return Model(
        name,
        layers=entry.whole("layers", least=1),
        hidden=entry.whole("hidden", least=1),
        feed_forward=entry.whole("feed_forward", least=1),
        heads=entry.whole("heads", least=1),
        kv_heads=entry.whole("kv_heads", least=1),
        head_dim=entry.whole("head_dim", least=1),
        vocabulary=entry.whole("vocabulary", least=1),
        context=entry.whole("context", least=1),
        tied_embeddings=entry.flag("tied_embeddings", default=False),
        rope={key: rope.text(key) if key == "type" else rope.number(key) for key in rope},
        source=entry.text("source"),
        published={recipe: published.text(recipe) for recipe in published} if published else {},
    )


def _gpu(name: str, entry: Section) -> Gpu:
    entry.only(*(field.name for field in dataclasses.fields(Gpu)))
    return Gpu(
        name,
        title=entry.text("title"),
        memory=entry.whole("memory", least=1),
        memory_bandwidth=entry.number("memory_bandwidth", least=1),
        bf16_flops=entry.number("bf16_flops", least=1),
        fp8_flops=entry.number("fp8_flops", least=1),
        link_bandwidth=entry.number("link_bandwidth", least=1),
        nvml_names=tuple(entry.texts("nvml_names")),
        operator_tables=entry.text("operator_tables"),
        source=entry.text("source"),
    )


def _recipe(name: str, entry: Section) -> Recipe:
    entry.only(*(field.name for field in dataclasses.fields(Recipe)))
    return Recipe(
        name,
        attention=_number(entry, "attention"),
        feed_forward=_number(entry, "feed_forward"),
        kv_cache=_number(entry, "kv_cache"),
        bf16_layers=entry.whole("bf16_layers"),
        source=entry.text("source"),
    )


def _number(entry: Section, key: str) -> Number:
    try:
        return Number(entry.text(key))
    except ValueError:
        raise entry.error(
            f"unknown number format {entry.text(key)!r}; {nearest(entry.text(key), Number)}", key=key
        ) from None


_CONFIG_FIELDS = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "intermediate_size": "feed_forward",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context",
}


def _model_of_checkpoint(folder: Path, name: str = "") -> Model:
    """The shape written in a Hugging Face `config.json`, whichever transformers version wrote it.

    It is called like the folder where it is given no name.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise UsageError(f"{path}: cannot be read as JSON: {problem}") from None
    if not isinstance(config, dict) or config.get("model_type") != "llama":
        found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise UsageError(f"{path}: model_type is {found!r}; this project tests 'llama' checkpoints")
    shape: dict[str, Any] = {field: config.get(key) for key, field in _CONFIG_FIELDS.items()}
    # Both may be left out: as many KV heads as heads, and heads that share the hidden size.
    shape["kv_heads"] = shape["heads"] if shape["kv_heads"] is None else shape["kv_heads"]
    if shape["head_dim"] is None and _is_count(shape["hidden"]) and _is_count(shape["heads"]):
        shape["head_dim"] = shape["hidden"] // shape["heads"]
    wrong = [key for key, field in _CONFIG_FIELDS.items() if not _is_count(shape[field])]
    if wrong:
        raise UsageError(f"{path}: missing, or not a positive whole number: {', '.join(wrong)}")
    if shape["heads"] % shape["kv_heads"]:
        raise UsageError(f"{path}: {shape['heads']} attention heads cannot share {shape['kv_heads']} KV heads evenly")
    name = name or folder.resolve().name.lower()
    if name in models() and any(getattr(models()[name], field) != value for field, value in shape.items()):
        raise UsageError(
            f"{folder} is called like the catalog's {name} and has another shape; rename the folder, "
            "or it would be judged by the promises made for that model"
        )
    return Model(
        name,
        **shape,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        rope=_rope_of_checkpoint(path, config),
        source=str(folder),
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _rope_of_checkpoint(path: Path, config: dict[str, Any]) -> dict[str, float | str]:
    """Rotary embedding in the catalog's words: transformers 5 writes rope_parameters, 4 wrote rope_theta and
    rope_scaling, and a plain rope is called `default` by the one and not named by the other."""
    scaling = config.get("rope_scaling") or {}
    written = config.get("rope_parameters") or scaling
    if not isinstance(written, dict) or not isinstance(scaling, dict):
        raise UsageError(f"{path}: rope_parameters or rope_scaling is no mapping")
    rope = {"rope_theta": config.get("rope_theta") or 10000.0, **written}
    words = {"rope_theta": "theta", "rope_type": "type", "original_max_position_embeddings": "original_context"}
    return {
        words.get(key, key): value
        for key, value in rope.items()
        if isinstance(value, (int, float, str)) and (key, value) != ("rope_type", "default")
    }
