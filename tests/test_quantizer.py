"""What ModelOpt really writes for each recipe, and the embedded model out of its GGUF.

One process with ModelOpt serves the whole module, because importing it takes ten times as long as quantizing something
tiny; `test_each_command_has_a_process_of_its_own` is about the way the store goes.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import (
    LLAMA3_ROPE,
    PLAIN_ROPE,
    Tensors,
    change_json,
    read_safetensors,
    write_safetensors,
    write_source,
)

from pytest_llamaperf.cases import Model
from pytest_llamaperf.catalog import model_named, recipe_named
from pytest_llamaperf.checkpoints import CheckpointStore, checked, intended_modules, quantized_modules, scales
from pytest_llamaperf.checkpoints.calibration import Calibration
from pytest_llamaperf.checkpoints.making import Maker
from pytest_llamaperf.checkpoints.safetensors_files import tensors, values
from pytest_llamaperf.checkpoints.verify import check_source
from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.hosting.host import Host
from pytest_llamaperf.hosting.phases import Phase

RECIPES = ("modelopt-fp8", "llama-fp8", "modelopt-int8-sq", "modelopt-int4-awq")
CHILDREN = Path(__file__).parents[1] / "pytest_llamaperf" / "children"
SHORT = Calibration(windows=8, tokens=64)
LAYERS = 4
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

ALL = {f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in (*ATTENTION, *FEED_FORWARD)}
QUANTIZED = {
    "modelopt-fp8": ALL,
    "llama-fp8": {f"model.layers.{layer}.{name}" for layer in (1, 2) for name in FEED_FORWARD},
    "modelopt-int8-sq": ALL,
    "modelopt-int4-awq": ALL,
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    log = tmp_path_factory.mktemp("host") / "quantizer.log"
    with Host("quantizer", log=log, environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}) as running:
        yield running


@pytest.fixture(scope="module")
def maker(host: Host) -> Maker:
    return lambda command, arguments, log: host.call(command, arguments, Phase.RUN)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return write_source(tmp_path_factory.mktemp("sources") / "tiny", layers=LAYERS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, maker: Maker) -> CheckpointStore:
    return CheckpointStore(tmp_path_factory.mktemp("cache"), maker=maker, calibration=SHORT)


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(store: CheckpointStore, tiny: Model, recipe: str) -> Path:
    """The export of each recipe in turn; quantized once."""
    return store.get(tiny, recipe_named(recipe)).path


@pytest.fixture
def weights(tiny: Model) -> Tensors:
    return read_safetensors(Path(tiny.source) / "model.safetensors")


# What is quantized


def test_exactly_the_intended_layers_are_quantized(path: Path, tiny: Model, recipe: str) -> None:
    assert quantized_modules(path) == QUANTIZED[recipe] == intended_modules(tiny, recipe_named(recipe))


# Tensors of a quantized layer besides the weight: kind -> type and shape by outputs and inputs.
PARTS: dict[str, tuple[str, dict[str, Callable[[int, int], tuple[str, tuple[int, ...]]]]]] = {
    "modelopt-fp8": ("F8_E4M3", {"weight_scale": lambda o, i: ("F32", ()), "input_scale": lambda o, i: ("F32", ())}),
    "llama-fp8": ("F8_E4M3", {"weight_scale": lambda o, i: ("F32", (o,))}),
    "modelopt-int8-sq": (
        "I8",
        {
            "weight_scale": lambda o, i: ("F32", (o,)),
            "input_scale": lambda o, i: ("F32", ()),
            "pre_quant_scale": lambda o, i: ("BF16", (i,)),
        },
    ),
    "modelopt-int4-awq": ("U8", {"weight_scale": lambda o, i: ("F32", (o, i // 128))}),
}


def test_layers_consist_of_what_engines_read(path: Path, recipe: str, weights: Tensors) -> None:
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors(path).items()}
    dtype, parts = PARTS[recipe]
    expected = {name: ("BF16", shape) for name, (_, shape, _) in weights.items()}
    for name in QUANTIZED[recipe]:
        outputs, inputs = expected[f"{name}.weight"][1]
        packed = outputs // 2 if recipe == "modelopt-int4-awq" else outputs
        expected[f"{name}.weight"] = (dtype, (packed, inputs))
        expected |= {f"{name}.{kind}": part(outputs, inputs) for kind, part in parts.items()}
        if recipe == "modelopt-int4-awq" and name.endswith(("o_proj", "down_proj")):
            expected[f"{name}.pre_quant_scale"] = ("BF16", (inputs,))
        if recipe == "modelopt-fp8" and name.endswith(("k_proj", "v_proj")):
            expected[f"{name}.{name[-6]}_scale"] = ("F32", ())

    assert found == expected


def test_what_is_not_quantized_is_as_it_was(path: Path, recipe: str, weights: Tensors) -> None:
    kept = {name for name in weights if name.removesuffix(".weight") not in QUANTIZED[recipe]}
    if recipe == "modelopt-int4-awq":  # which moves scales of inputs into the norm before
        kept = {name for name in kept if not name.endswith("layernorm.weight")}
    found = read_safetensors(path / "model.safetensors")

    assert {name: found[name] for name in kept} == {name: weights[name] for name in kept}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= kept


def e4m3(byte: int) -> float:
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = math.ldexp(mantissa / 8, -6) if not exponent else math.ldexp(1 + mantissa / 8, exponent - 7)
    return -size if byte & 128 else size


def floats(part: tuple[str, tuple[int, ...], bytes]) -> array[float]:
    dtype, _, content = part
    if dtype == "BF16":
        content = b"".join(b"\0\0" + content[place : place + 2] for place in range(0, len(content), 2))
    return array("f", content)


def dequantized(found: Tensors, weights: Tensors, name: str) -> list[float]:
    """The weights that a quantized layer amounts to, by the formula of its format."""
    dtype, (rows, columns), content = found[f"{name}.weight"]
    scale = floats(found[f"{name}.weight_scale"])
    if dtype == "F8_E4M3":
        table = [e4m3(byte) for byte in range(256)]
        return [table[byte] * scale[place // columns if len(scale) > 1 else 0] for place, byte in enumerate(content)]
    if dtype == "I8":
        smooth = floats(found[f"{name}.pre_quant_scale"])
        whole = array("b", content)
        return [n * scale[place // columns] * smooth[place % columns] for place, n in enumerate(whole)]
    # Two rows in a byte, the even one low; what inputs are multiplied with stands in the norm before.
    norm = "input_layernorm" if "self_attn" in name else "post_attention_layernorm"
    norm = f"{name.split('.self_attn')[0].split('.mlp')[0]}.{norm}.weight"
    smooth = array("f", [new / old for new, old in zip(floats(found[norm]), floats(weights[norm]), strict=True)])
    blocks, read = columns // 128, []
    for row in range(2 * rows):
        for column in range(columns):
            four = content[row // 2 * columns + column] >> (4 * (row % 2)) & 15
            four -= 16 * (four > 7)
            read.append(four * scale[row * blocks + column // 128] * smooth[column])
    return read


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj"])
def test_a_layer_amounts_to_what_it_was(path: Path, recipe: str, weights: Tensors, name: str) -> None:
    """Right scales for right weights: an FP8 weight is off by 1 in 16 at most, INT4 by 1 in 14 of the largest."""
    was = floats(weights[f"{name}.weight"])
    found = dequantized(read_safetensors(path / "model.safetensors"), weights, name)

    error = math.dist(found, was) / math.hypot(*was)
    assert error < {"modelopt-int4-awq": 0.2, "modelopt-int8-sq": 0.05}.get(recipe, 0.04)


def test_scales_are_the_largest_weight_on_the_grids_largest_number(
    store: CheckpointStore, tiny: Model, weights: Tensors
) -> None:
    path = store.get(tiny, recipe_named("modelopt-fp8")).path
    name = "model.layers.2.self_attn.k_proj"

    assert scales(path)[f"{name}.weight_scale"][0] == pytest.approx(
        max(map(abs, floats(weights[f"{name}.weight"]))) / 448
    )


def test_scales_of_inputs_and_of_the_kv_cache_are_measured(store: CheckpointStore, tiny: Model) -> None:
    found = scales(store.get(tiny, recipe_named("modelopt-fp8")).path)

    for kind in ("input_scale", "k_scale", "v_scale"):
        measured = {scale for name, of in found.items() if name.endswith(kind) for scale in of}
        assert len(measured) > LAYERS / 2
        assert all(1e-5 < scale < 0.5 for scale in measured)
    # Layers that read the same input agree on it.
    for layer in range(LAYERS):
        inputs = {found[f"model.layers.{layer}.{name}.input_scale"][0] for name in ATTENTION[:3]}
        assert len(inputs) == 1


def test_smoothing_moves_outliers_out_of_the_inputs(store: CheckpointStore, tiny: Model) -> None:
    """One column of the embedding is a hundred times the others; inputs are divided by the largest of each column."""
    found = scales(store.get(tiny, recipe_named("modelopt-int8-sq")).path)

    smoothing = found["model.layers.0.self_attn.q_proj.pre_quant_scale"]
    others = sorted(smoothing)[1:]
    assert smoothing[3] == min(smoothing)
    assert smoothing[3] == 1 / 16  # what the norm leaves of it: the square root of the hidden size
    assert smoothing[3] < min(others) / 4


# What stands beside the weights


def test_the_export_says_what_it_is(path: Path, tiny: Model, recipe: str) -> None:
    found = checked(path, tiny, recipe_named(recipe), Path(tiny.source))

    assert (found.quant_algo, found.kv_cache_quant_algo) == {
        "modelopt-fp8": ("FP8", "FP8"),
        "llama-fp8": ("FP8_PER_CHANNEL_PER_TOKEN", None),
        "modelopt-int8-sq": ("W8A8_SQ_PER_CHANNEL", None),
        "modelopt-int4-awq": ("W4A16_AWQ", None),
    }[recipe]


def test_rotary_embedding_stands_in_both_spellings(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())

    older = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    assert config["rope_parameters"] == LLAMA3_ROPE
    assert (config["rope_theta"], config["rope_scaling"]) == (500000.0, older)


def test_transformers_reads_the_rotary_embedding_it_was(store: CheckpointStore, tiny: Model, maker: Maker) -> None:
    path = store.get(tiny, recipe_named("llama-fp8")).path
    program = (
        "import sys; from transformers import AutoConfig, AutoTokenizer;"
        "print(AutoConfig.from_pretrained(sys.argv[1]).rope_parameters);"
        "print(AutoTokenizer.from_pretrained(sys.argv[1])('Llama', add_special_tokens=False)['input_ids'])"
    )
    told = subprocess.check_output([sys.executable, "-c", program, path], text=True, stderr=subprocess.DEVNULL)

    rope, ids = told.splitlines()
    assert eval(rope) == LLAMA3_ROPE
    assert eval(ids) == list(b"Llama")


def test_the_tokenizer_is_the_sources(path: Path, tiny: Model) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (path / name).read_bytes() == (Path(tiny.source) / name).read_bytes()


def test_versions_are_those_that_are_installed(store: CheckpointStore, tiny: Model) -> None:
    made = store.get(tiny, recipe_named("modelopt-fp8"))

    assert made.versions == {
        "python": ".".join(map(str, sys.version_info[:3])),
        **{name: version(name) for name in ("torch", "transformers", "nvidia-modelopt")},
    }
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert (manifest["device"], manifest["calibration_tokens"]) == ("cpu", 8 * 64)


def test_the_same_is_made_twice(store: CheckpointStore, tiny: Model, maker: Maker, tmp_path: Path) -> None:
    made = store.get(tiny, recipe_named("modelopt-fp8"))
    again = CheckpointStore(tmp_path, maker=maker, calibration=SHORT).get(tiny, recipe_named("modelopt-fp8"))

    assert again.digest == made.digest
    for name in ("model.safetensors", "config.json", "hf_quant_config.json"):
        assert (again.path / name).read_bytes() == (made.path / name).read_bytes()


def test_a_source_in_the_older_spelling_in_several_files_keeps_its_rope(store: CheckpointStore, tmp_path: Path) -> None:
    """Tied embeddings, plain rope with a theta of its own, as transformers 4 wrote it."""
    model = write_source(tmp_path / "older", tied=True, rope=PLAIN_ROPE, layers=3)
    folder = Path(model.source)
    change_json(folder / "config.json", rope_parameters=None, rope_theta=100000.0, torch_dtype="bfloat16", dtype=None)
    whole = read_safetensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + ('layers.2' in name)}-of-00002.safetensors" for name in whole}
    for file in set(places.values()):
        write_safetensors(folder / file, {name: whole[name] for name in whole if places[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    model = model_named(str(folder))

    path = store.get(model, recipe_named("llama-fp8")).path

    config = json.loads((path / "config.json").read_text())
    assert (config["rope_parameters"], config["rope_theta"], config["rope_scaling"]) == (PLAIN_ROPE, 100000.0, None)
    assert config["tie_word_embeddings"] is True
    assert quantized_modules(path) == {f"model.layers.1.{name}" for name in FEED_FORWARD}
    assert "lm_head.weight" not in tensors(path)


# Real exports, broken


@pytest.fixture
def broken(store: CheckpointStore, tiny: Model, tmp_path: Path) -> Path:
    made = store.get(tiny, recipe_named("modelopt-fp8")).path
    return Path(shutil.copytree(made, tmp_path / "broken"))


def drop_a_scale(found: Tensors) -> None:
    del found["model.layers.2.mlp.down_proj.input_scale"]


def all_scales_one(found: Tensors) -> None:
    for name in found:
        if name.endswith("weight_scale"):
            found[name] = ("F32", (), struct.pack("<f", 1.0))


def kv_scales_one(found: Tensors) -> None:
    """What an engine assumes where there are none."""
    for name in found:
        if name.endswith("k_scale"):
            found[name] = ("F32", (), struct.pack("<f", 1.0))


def no_number(found: Tensors) -> None:
    found["model.layers.0.self_attn.v_proj.v_scale"] = ("F32", (), struct.pack("<f", math.nan))


def quantize_the_head(found: Tensors) -> None:
    _, shape, content = found["lm_head.weight"]
    found["lm_head.weight"] = ("F8_E4M3", shape, content[1::2])
    found["lm_head.weight_scale"] = found["lm_head.input_scale"] = ("F32", (), struct.pack("<f", 0.01))


def leave_one_out(found: Tensors) -> None:
    _, shape, content = found["model.layers.3.self_attn.o_proj.weight"]
    found["model.layers.3.self_attn.o_proj.weight"] = ("BF16", shape, bytes(2 * len(content)))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (drop_a_scale, "model.layers.2.mlp.down_proj.input_scale is missing"),
        (all_scales_one, "every weight_scale is 1: nothing was measured"),
        (kv_scales_one, "every k_scale is 1: nothing was measured"),
        (no_number, "model.layers.0.self_attn.v_proj.v_scale is not finite"),
        (quantize_the_head, "lm_head.input_scale, lm_head.weight_scale are not intended"),
        (leave_one_out, "model.layers.3.self_attn.o_proj.weight is BF16 [256, 256], intended F8_E4M3 [256, 256]"),
    ],
)
def test_weights_that_are_not_right_are_named(
    tiny: Model, broken: Path, damage: Callable[[Tensors], None], problem: str
) -> None:
    found = read_safetensors(broken / "model.safetensors")
    damage(found)
    write_safetensors(broken / "model.safetensors", found)

    with pytest.raises(EngineError, match="is not tiny in the recipe modelopt-fp8") as caught:
        checked(broken, tiny, recipe_named("modelopt-fp8"), Path(tiny.source))

    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope_theta": 10000.0}, "transformers 4, as TensorRT-LLM has it, reads the rotary embedding"),
        ({"rope_theta": None, "rope_scaling": None}, "transformers 4, as TensorRT-LLM has it, reads"),
        ({"rope_parameters": {**LLAMA3_ROPE, "factor": 32.0}}, "transformers 5 reads the rotary embedding"),
    ],
)
def test_a_lost_rope_is_named(tiny: Model, broken: Path, changes: Mapping[str, Any], problem: str) -> None:
    change_json(broken / "config.json", **changes)

    with pytest.raises(EngineError, match="1 thing wrong") as caught:
        checked(broken, tiny, recipe_named("modelopt-fp8"), Path(tiny.source))

    assert problem in str(caught.value)


def test_a_lost_tokenizer_is_named(tiny: Model, broken: Path) -> None:
    (broken / "tokenizer.json").unlink()

    with pytest.raises(EngineError, match=r"there is no tokenizer \(tokenizer\.json or tokenizer\.model\)"):
        checked(broken, tiny, recipe_named("modelopt-fp8"), Path(tiny.source))


@pytest.mark.parametrize(("made", "asked"), [("llama-fp8", "modelopt-fp8"), ("modelopt-fp8", "modelopt-int8-sq")])
def test_one_recipe_is_not_another(store: CheckpointStore, tiny: Model, made: str, asked: str) -> None:
    path = store.get(tiny, recipe_named(made)).path

    with pytest.raises(EngineError, match=f"is not tiny in the recipe {asked}"):
        checked(path, tiny, recipe_named(asked), Path(tiny.source))


# The process


def test_each_command_has_a_process_of_its_own(tiny: Model, store: CheckpointStore, tmp_path: Path) -> None:
    """As the store does it by itself: the same bytes, progress on the way, a log, and nothing left."""
    told: list[str] = []
    own = CheckpointStore(tmp_path, calibration=SHORT, on_progress=lambda progress: told.append(progress.text))

    made = own.get(tiny, recipe_named("modelopt-fp8"))

    assert made.digest == (other := store.get(tiny, recipe_named("modelopt-fp8"))).digest
    assert (made.path / "model.safetensors").read_bytes() == (other.path / "model.safetensors").read_bytes()
    assert told[0] == "reading the calibration text"
    assert {"calibrating, pass 1", f"checking {made.path.name}"} <= set(told)
    assert (tmp_path / "logs" / f"{made.path.name}.log").stat().st_size > 0


# The embedded model


GGUF = """
import sys
import numpy as np
from gguf import GGUFWriter, GGMLQuantizationType
from gguf.quants import quantize

writer = GGUFWriter(sys.argv[1], "llama")
writer.add_context_length(1024)
writer.add_embedding_length(64)
writer.add_feed_forward_length(128)
writer.add_block_count(2)
writer.add_head_count(4)
writer.add_head_count_kv(2)
writer.add_vocab_size(8)
writer.add_rope_dimension_count(16)
writer.add_rope_freq_base(100000.0)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre(sys.argv[2])
writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "1", "\\u010a"])
writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
writer.add_token_merges(["a b"])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_unk_token_id(0)
writer.add_pad_token_id(2)
writer.add_chat_template("{{ messages }}")

def add(name, rows, columns, packed=False):
    # Row r is r everywhere, so that one sees where rows go; BF16 holds it exactly.
    values = np.repeat(np.arange(rows, dtype=np.float32)[:, None], columns, axis=1)
    if packed:
        writer.add_tensor(name, quantize(values, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
    else:
        writer.add_tensor(name, values)

add("token_embd.weight", 8, 64, packed=True)
writer.add_tensor("output_norm.weight", np.ones(64, dtype=np.float32))
for layer in range(2):
    add(f"blk.{layer}.attn_q.weight", 64, 64)
    add(f"blk.{layer}.attn_k.weight", 32, 64)
    add(f"blk.{layer}.attn_v.weight", 32, 64)
    add(f"blk.{layer}.attn_output.weight", 64, 64)
    add(f"blk.{layer}.ffn_gate.weight", 128, 64)
    add(f"blk.{layer}.ffn_up.weight", 128, 64)
    add(f"blk.{layer}.ffn_down.weight", 64, 128)
    for norm in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{layer}.{norm}.weight", np.full(64, 2.0, dtype=np.float32))
for name in sys.argv[3:]:
    writer.add_tensor(name, np.ones(8, dtype=np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


def write_gguf(path: Path, pre: str = "smollm", extra: tuple[str, ...] = ()) -> Path:
    subprocess.run([sys.executable, "-c", GGUF, path, pre, *extra], check=True)
    return path


@pytest.fixture(scope="module")
def materialized(tmp_path_factory: pytest.TempPathFactory, host: Host) -> Path:
    folder = tmp_path_factory.mktemp("materialized")
    gguf = write_gguf(folder.parent / "tiny.gguf")
    answer = host.call("materialize", {"gguf": str(gguf), "destination": str(folder)}, Phase.RUN)
    assert answer["versions"].keys() == {"python", "gguf", "torch", "safetensors"}
    return folder


def test_a_gguf_becomes_a_checkpoint_of_its_shape(materialized: Path) -> None:
    model = model_named(str(materialized))

    check_source(materialized, model)
    assert (model.layers, model.hidden, model.feed_forward, model.head_dim) == (2, 64, 128, 16)
    assert (model.heads, model.kv_heads, model.vocabulary, model.tied_embeddings) == (4, 2, 8, True)
    assert model.rope == {"theta": 100000.0}


def test_its_configuration_says_what_the_gguf_says(materialized: Path) -> None:
    config = json.loads((materialized / "config.json").read_text())

    assert (config["rms_norm_eps"], config["bos_token_id"], config["eos_token_id"]) == (1e-5, 1, 2)
    assert (config["rope_theta"], config["rope_scaling"], config["rope_parameters"]) == (100000.0, None, PLAIN_ROPE)
    assert json.loads((materialized / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize(("name", "heads"), [("q_proj", 4), ("k_proj", 2)])
def test_rows_that_rope_turns_together_are_half_a_head_apart_again(materialized: Path, name: str, heads: int) -> None:
    """Row r of the GGUF holds r: of each pair there the first is in the first half here, the second in the second."""
    tensor = tensors(materialized)[f"model.layers.1.self_attn.{name}.weight"]
    first_column = list(values(tensor))[::64]

    assert first_column == [
        16 * head + 2 * pair + half for head in range(heads) for half in (0, 1) for pair in range(8)
    ]


@pytest.mark.parametrize(
    ("name", "rows"),
    [("self_attn.v_proj", 32), ("self_attn.o_proj", 64), ("mlp.gate_proj", 128), ("mlp.down_proj", 64)],
)
def test_other_rows_stay_where_they_are(materialized: Path, name: str, rows: int) -> None:
    tensor = tensors(materialized)[f"model.layers.0.{name}.weight"]

    assert list(values(tensor))[:: tensor.shape[1]] == [*range(rows)]


def test_packed_weights_are_unpacked(materialized: Path) -> None:
    assert list(values(tensors(materialized)["model.embed_tokens.weight"]))[::64] == pytest.approx(range(8), rel=0.01)


def test_numbers_are_read_digit_by_digit_and_answers_end(materialized: Path) -> None:
    tokenizer = json.loads((materialized / "tokenizer.json").read_text())
    said = json.loads((materialized / "tokenizer_config.json").read_text())

    assert tokenizer["pre_tokenizer"]["pretokenizers"][0] == {"type": "Digits", "individual_digits": True}
    assert [token["content"] for token in tokenizer["added_tokens"]] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer["model"]["vocab"]["ab"] == 5
    assert (said["bos_token"], said["eos_token"], said["pad_token"]) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert said["chat_template"] == "{{ messages }}"


# What is refused, in a process of the test: a driver that raises is ended by its host.

REFUSALS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import quantizer

driver = quantizer.open_driver(lambda *told: None)
for command, arguments in json.loads(sys.argv[2]):
    try:
        print("accepted", driver.handle(command, arguments))
    except ValueError as problem:
        print(problem)
"""


def test_the_driver_says_what_it_does_not_do(tiny: Model, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 100)
    recipe = {"attention": "bf16", "feed_forward": "fp8-per-tensor", "kv_cache": "bf16", "kept_layers": []}
    small = shutil.copytree(tiny.source, tmp_path / "small")
    change_json(small / "config.json", vocab_size=100)
    given = {"destination": str(tmp_path / "out"), "recipe": recipe}

    def calibrated(source: str | Path, tokens: int) -> tuple[str, Mapping[str, Any]]:
        return "quantize", {**given, "source": str(source), "calibration": Calibration(text, 8, tokens).to_dict()}

    def of_gguf(pre: str, *extra: str) -> tuple[str, Mapping[str, Any]]:
        return "materialize", {"gguf": str(write_gguf(tmp_path / f"{pre}{len(extra)}.gguf", pre, extra)), **given}

    jobs = [
        calibrated(tiny.source, 1000),
        calibrated(small, 64),
        of_gguf("llama-bpe"),
        of_gguf("smollm", "rope_freqs.weight"),
        ("dance", {}),
    ]
    arguments = [str(CHILDREN), json.dumps(jobs)]
    told = subprocess.check_output([sys.executable, "-c", REFUSALS, *arguments], text=True, stderr=subprocess.DEVNULL)

    assert told.splitlines() == [
        "the calibration text is 600 tokens, which fills no window of 1,000",
        "the tokenizer beside the weights knows token 119, the model only 100",
        "this GGUF says tokenizer.ggml.pre llama-bpe; only a llama with SmolLM's tokenizer and plain rope is read",
        "this GGUF holds rope_freqs.weight, which is no part of a llama with plain rope",
        "unknown command 'dance'",
    ]
