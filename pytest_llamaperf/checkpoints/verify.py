"""Is a quantized checkpoint what its recipe says? Asked of the files that were written, before anybody uses them.

A layer left out, a scale of one or a lost rope_theta raise no error in an engine: it answers, faster or slower, and
worse. So the files are compared with the recipe and with the checkpoint they were made from, tensor by tensor.
"""

from __future__ import annotations

import fnmatch
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pytest_llamaperf.cases import INT4_BLOCK, Model, Number, Recipe
from pytest_llamaperf.checkpoints.configs import (
    CONFIG,
    QUANTIZATION,
    TOKENIZERS,
    Rope,
    catalog_rope,
    older_rope,
    read_json,
    rope,
    tokenizer_file,
)
from pytest_llamaperf.checkpoints.intended import ALGORITHMS, Part, intended_modules, intended_parts, weight_format
from pytest_llamaperf.checkpoints.safetensors_files import FLOATS, BadCheckpoint, Tensor, tensors, values
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.wording import counted, shown_path

SCALES = ("weight_scale", "input_scale", "pre_quant_scale", "k_scale", "v_scale")
_QUANTIZED_TYPES = ("F8_E4M3", "I8", "U8")
_NAMED = 3  # of many things that are wrong alike

# Of config.json, besides rotary embedding: what changes the answers, or where they end.
_KEPT_FIELDS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "attention_bias", "mlp_bias",
    "tie_word_embeddings", "bos_token_id", "eos_token_id",
)  # fmt: skip
# Left out by older versions of transformers where it is this.
_FIELD_DEFAULTS = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}

_SHAPE_FIELDS = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "intermediate_size": "feed_forward",
    "num_attention_heads": "heads",
    "vocab_size": "vocabulary",
}


@dataclass(frozen=True)
class Findings:
    """What stands in a checkpoint, after nothing was found wrong. Scales are (lowest, highest) of each kind."""

    quantized_modules: frozenset[str]
    scales: Mapping[str, tuple[float, float]]
    quant_algo: str | None
    kv_cache_quant_algo: str | None
    rope: Rope


def checked(path: Path, model: Model, recipe: Recipe, source: Path) -> Findings:
    """What the quantized checkpoint in `path` holds; `source` is the one it was made from.

    Raises EngineError that names everything that is not as the recipe says.
    """
    try:
        found = tensors(path)
        config, original = read_json(path / CONFIG), read_json(source / CONFIG)
        quantization = read_json(path / QUANTIZATION).get("quantization")
        if not isinstance(quantization, dict):
            raise BadCheckpoint(path / QUANTIZATION, "has no mapping called quantization")
        scale_values = _scales(found)
    except BadCheckpoint as problem:
        _refuse(path, model, recipe, [str(problem)])
    problems = [
        *_wrong_parts(found, intended_parts(model, recipe)),
        *_wrong_scales(scale_values),
        *_wrong_quantization(quantization, config, model, recipe),
        *_wrong_config(config, original),
        *_wrong_tokenizer(path, source),
    ]
    if problems:
        _refuse(path, model, recipe, problems)
    kinds = {name.rpartition(".")[2] for name in scale_values}
    return Findings(
        _quantized(found),
        {kind: _range_of(kind, scale_values) for kind in sorted(kinds)},
        quantization.get("quant_algo"),
        quantization.get("kv_cache_quant_algo"),
        rope(config),
    )


def check_source(path: Path, model: Model) -> None:
    """Refuse a checkpoint that is not whole, not of this model, or quantized already. Raises BadCheckpoint."""
    config = read_json(path / CONFIG)
    if config.get("quantization_config") or (path / QUANTIZATION).exists():
        raise BadCheckpoint(path, "is quantized already; give the BF16 checkpoint it was made from")
    wrong = [
        f"{field} is {config.get(field)} and not {getattr(model, attribute)}"
        for field, attribute in _SHAPE_FIELDS.items()
        if config.get(field) != getattr(model, attribute)
    ]
    if config.get("rope_parameters") and config.get("rope_theta") and rope(config) != older_rope(config):
        wrong.append(f"rotary embedding is {_shown(rope(config))} and {_shown(older_rope(config))} as well")
    elif rope(config) != catalog_rope(model.rope):
        wrong.append(f"rotary embedding is {_shown(rope(config))} and not {_shown(catalog_rope(model.rope))}")
    if wrong:
        raise BadCheckpoint(path / CONFIG, f"is not of {model}: {', '.join(wrong)}")
    plain = Recipe("bf16", Number.BF16, Number.BF16, Number.BF16, 0, "")
    if wrong := list(_wrong_parts(_without_buffers(tensors(path)), intended_parts(model, plain))):
        raise BadCheckpoint(path, "; ".join(wrong))


def quantized_modules(path: Path) -> frozenset[str]:
    """Names of the linear layers whose weights are stored quantized. Raises BadCheckpoint."""
    return _quantized(tensors(path))


def scales(path: Path) -> dict[str, array[float]]:
    """Values of every scale by the tensor's name; of very large ones a part. Raises BadCheckpoint."""
    return _scales(tensors(path))


def _quantized(found: Mapping[str, Tensor]) -> frozenset[str]:
    return frozenset(
        name.removesuffix(".weight")
        for name, tensor in found.items()
        if name.endswith(".weight") and tensor.dtype in _QUANTIZED_TYPES
    )


def _scales(found: Mapping[str, Tensor]) -> dict[str, array[float]]:
    return {
        name: values(tensor)
        for name, tensor in found.items()
        if name.rpartition(".")[2] in SCALES and tensor.dtype in FLOATS
    }


def _range_of(kind: str, scale_values: Mapping[str, array[float]]) -> tuple[float, float]:
    of_kind = [numbers for name, numbers in scale_values.items() if name.rpartition(".")[2] == kind]
    return min(map(min, of_kind)), max(map(max, of_kind))


def _wrong_parts(found: Mapping[str, Tensor], intended: Mapping[str, Part]) -> Iterator[str]:
    missing = [name for name, part in intended.items() if name not in found and not part.optional]
    if missing:
        yield f"{_some(missing)} missing"
    if extra := sorted(found.keys() - intended.keys()):
        yield f"{_some(extra)} not intended"
    wrong = [
        name for name, part in intended.items() if name in found and not part.fits(found[name].dtype, found[name].shape)
    ]
    # Alike are those of one kind of layer with one kind of mistake.
    groups: dict[tuple[str, str], list[str]] = {}
    for name in wrong:
        told = f"{found[name].dtype} {list(found[name].shape)}, intended {intended[name]}"
        groups.setdefault((name.rpartition("layers.")[2].partition(".")[2], told), []).append(name)
    for (_, told), names in groups.items():
        yield f"{_some(names)} {told}"


def _wrong_scales(scale_values: Mapping[str, array[float]]) -> Iterator[str]:
    infinite = [name for name, numbers in scale_values.items() if not all(map(math.isfinite, numbers))]
    if infinite:
        yield f"{_some(infinite)} not finite"
    low = [name for name, numbers in scale_values.items() if numbers and name not in infinite and min(numbers) <= 0]
    if low:
        yield f"{_some(low)} not positive"
    for kind in SCALES:
        of_kind = [numbers for name, numbers in scale_values.items() if name.rpartition(".")[2] == kind]
        if of_kind and all(number == 1.0 for numbers in of_kind for number in numbers):
            yield f"every {kind} is 1: nothing was measured"


def _wrong_quantization(
    said: Mapping[str, Any], config: Mapping[str, Any], model: Model, recipe: Recipe
) -> Iterator[str]:
    number = weight_format(recipe)
    algorithm = ALGORITHMS[number] if number else None
    cache = "FP8" if recipe.kv_cache == Number.FP8 else None
    for key, intended in (("quant_algo", algorithm), ("kv_cache_quant_algo", cache)):
        if said.get(key) != intended:
            yield f"{QUANTIZATION} says {key} {said.get(key)}, intended {intended}"
    if number == Number.INT4_AWQ and said.get("group_size") != INT4_BLOCK:
        yield f"{QUANTIZATION} says group_size {said.get('group_size')}, intended {INT4_BLOCK}"
    yield from _wrong_exclusions(said.get("exclude_modules"), model, recipe)
    inline = config.get("quantization_config")
    if not isinstance(inline, dict) or inline.get("quant_algo") != algorithm:
        found = inline.get("quant_algo") if isinstance(inline, dict) else "no quantization_config"
        yield f"{CONFIG} says {found}, intended {algorithm}"


def _wrong_exclusions(excluded: object, model: Model, recipe: Recipe) -> Iterator[str]:
    """TensorRT-LLM takes every linear layer as quantized that this list does not name."""
    patterns = [str(pattern) for pattern in excluded] if isinstance(excluded, list) else []
    intended = intended_modules(model, recipe)
    everything = {
        name.removesuffix(".weight") for name in intended_parts(model, recipe) if name.endswith("_proj.weight")
    }
    left_out = sorted((everything - intended) | {"lm_head"})
    if unnamed := [name for name in left_out if not _matches(name, patterns)]:
        yield f"{_some(unnamed)} not excluded in {QUANTIZATION}"
    if named := [name for name in sorted(intended) if _matches(name, patterns)]:
        yield f"{_some(named)} excluded in {QUANTIZATION}, though quantized"


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _wrong_config(config: Mapping[str, Any], original: Mapping[str, Any]) -> Iterator[str]:
    wanted = rope(original)
    for version, found in (("5", rope(config)), ("4, as TensorRT-LLM has it,", older_rope(config))):
        if found != wanted:
            yield (
                f"{CONFIG}: transformers {version} reads the rotary embedding {_shown(found)}; "
                f"the source has {_shown(wanted)}"
            )
    for field in _KEPT_FIELDS:
        here, there = (said.get(field, _FIELD_DEFAULTS.get(field)) for said in (config, original))
        if here != there and not (field in ("head_dim", "num_key_value_heads") and there is None):
            yield f"{CONFIG} says {field} {here}, the source {there}"


def _wrong_tokenizer(path: Path, source: Path) -> Iterator[str]:
    there = tokenizer_file(source)
    if tokenizer_file(path) is None:
        yield f"there is no tokenizer ({' or '.join(TOKENIZERS)})"
    elif there and not _same(path / there.name, there):
        yield f"{there.name} is not the source's"


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.read_bytes() == other.read_bytes()


def _without_buffers(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old checkpoints of Llama 2 carry the frequencies of rope, which every reader computes."""
    return {name: tensor for name, tensor in found.items() if not name.endswith(".rotary_emb.inv_freq")}


def _some(names: list[str]) -> str:
    """`a, b, c and 25 more are`"""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} {'is' if len(names) == 1 else 'are'}"


def _shown(said: Rope) -> str:
    return ", ".join(f"{key} {value if isinstance(value, str) else format(value, 'g')}" for key, value in said.items())


def _refuse(path: Path, model: Model, recipe: Recipe, problems: list[str]) -> NoReturn:
    listed = "".join(f"\n    {problem}" for problem in problems)
    raise EngineError(
        f"{shown_path(path)} is not {model} in the recipe {recipe}; {counted(len(problems), 'thing')} wrong:{listed}"
    )
