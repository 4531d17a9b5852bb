"""Checkpoints that come quantized: taken as they are where they are what the recipe says, refused with advice elsewhere."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import (
    LLAMA3_ROPE,
    Tensors,
    change_json,
    flatten_quantization,
    put_in_hub,
    read_safetensors,
    rewrite_as_nvidia,
    write_quantized,
    write_safetensors,
    write_source,
)

from pytest_llamaperf.cases import Model, Number, Recipe
from pytest_llamaperf.catalog import model_named, models, recipe_named
from pytest_llamaperf.checkpoints import BadCheckpoint, Checkpoint, CheckpointStore, check_rope
from pytest_llamaperf.checkpoints.digests import folder_digest
from pytest_llamaperf.errors import EngineError, UsageError

FP8 = recipe_named("modelopt-fp8")
RECIPES = ("modelopt-fp8", "llama-fp8", "modelopt-int8-sq", "modelopt-int4-awq")


class Maker:
    """Plays ModelOpt and Hugging Face, and notes what it was asked for; of Hugging Face it has what lies in `remote`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.model: Model | None = None
        self.remote: dict[str, Path] = {}

    def __call__(self, command: str, arguments: Mapping[str, Any], log: Path) -> Mapping[str, Any]:
        if command == "fetch":
            self.asked.append(f"fetch {arguments['repository']}")
            return {"versions": {}, "path": str(self.remote[arguments["repository"]])}
        assert command == "quantize"
        assert self.model is not None, "nothing is to be quantized"
        said = arguments["recipe"]
        attention, feed_forward, kv_cache = (Number(said[part]) for part in ("attention", "feed_forward", "kv_cache"))
        recipe = Recipe("", attention, feed_forward, kv_cache, len(said["kept_layers"]), "")
        self.asked.append("quantize")
        write_quantized(Path(arguments["destination"]), self.model, recipe, Path(arguments["source"]))
        return {"versions": {"nvidia-modelopt": "0.47.0"}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The BF16 checkpoint, of four layers so that llama-fp8 keeps two and quantizes two; nobody changes it."""
    return write_source(tmp_path_factory.mktemp("sources") / "tiny", layers=4)


@pytest.fixture
def folder(tiny: Model, tmp_path: Path) -> Path:
    """In FP8, as ModelOpt exports it."""
    write_quantized(tmp_path / "my-llama-fp8", tiny, FP8, Path(tiny.source))
    return tmp_path / "my-llama-fp8"


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def store(tmp_path: Path, maker: Maker) -> CheckpointStore:
    return CheckpointStore(tmp_path / "cache", maker=maker)


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    changed = read_safetensors(folder / "model.safetensors")
    change(changed)
    write_safetensors(folder / "model.safetensors", changed)


def change_quantization(folder: Path, **changes: Any) -> None:
    said = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    change_json(folder / "hf_quant_config.json", quantization={**said, **changes})


def refused(store: CheckpointStore, folder: Path, recipe: Recipe = FP8) -> str:
    """The message, without the folder it begins with."""
    with pytest.raises(BadCheckpoint) as caught:
        store.get(model_named(str(folder)), recipe)
    message = str(caught.value)
    assert message.startswith(str(folder))
    return message.removeprefix(str(folder)).removeprefix(": ")


# Taken as it is


@pytest.mark.parametrize("name", RECIPES)
def test_a_quantized_folder_is_taken_as_it_is(tiny: Model, tmp_path: Path, store: CheckpointStore, name: str) -> None:
    recipe = recipe_named(name)
    write_quantized(tmp_path / "My-Llama", tiny, recipe, Path(tiny.source))

    found = store.get(model_named(str(tmp_path / "My-Llama")), recipe)

    digest = folder_digest(tmp_path / "My-Llama")
    assert found == Checkpoint(tmp_path / "My-Llama", "my-llama", name, digest, {"nvidia-modelopt": "0.37.0"})
    assert not store.root.exists()


def test_what_the_store_made_is_taken_from_elsewhere(tiny: Model, store: CheckpointStore, maker: Maker) -> None:
    maker.model = tiny
    made = store.get(tiny, FP8)

    again = store.get(model_named(str(made.path)), FP8)

    assert again.path == made.path
    assert maker.asked == ["quantize"]


def test_what_nvidia_publishes_is_taken(folder: Path, store: CheckpointStore) -> None:
    rewrite_as_nvidia(folder)

    assert store.get(model_named(str(folder)), FP8).versions == {"nvidia-modelopt": "0.37.0"}


def test_the_flat_words_of_a_newer_modelopt_are_understood(folder: Path, store: CheckpointStore) -> None:
    flatten_quantization(folder)

    assert store.get(model_named(str(folder)), FP8).versions == {"nvidia-modelopt": "1.0.0"}


@pytest.mark.parametrize("inline", [{"quant_method": "modelopt", "quant_algo": "NVFP4"}, {"quant_algo": None}])
def test_its_own_file_counts_where_config_json_says_something_else(
    folder: Path, store: CheckpointStore, inline: Mapping[str, Any]
) -> None:
    """TensorRT-LLM warns, and reads hf_quant_config.json."""
    change_json(folder / "config.json", quantization_config=inline)

    assert store.get(model_named(str(folder)), FP8).path == folder


@pytest.mark.parametrize(
    ("producer", "versions"),
    [
        (None, {}),
        ({"name": "modelopt"}, {"nvidia-modelopt": "unknown"}),
        ({"name": "nemo-rl", "version": "2.0"}, {"nemo-rl": "2.0"}),
    ],
)
def test_who_wrote_it_is_what_it_says(
    folder: Path, store: CheckpointStore, producer: object, versions: Mapping[str, str]
) -> None:
    change_json(folder / "hf_quant_config.json", producer=producer)

    assert store.get(model_named(str(folder)), FP8).versions == versions


def test_a_module_is_excluded_by_a_part_of_its_name(tiny: Model, tmp_path: Path, store: CheckpointStore) -> None:
    recipe = recipe_named("llama-fp8")
    write_quantized(tmp_path / "llama", tiny, recipe, Path(tiny.source))
    attention = [f"model.layers.{layer}.self_attn*" for layer in range(4)]
    change_quantization(
        tmp_path / "llama", exclude_modules=["lm_head", *attention, "model.layers.0", "model.layers.3.mlp"]
    )

    assert store.get(model_named(str(tmp_path / "llama")), recipe).path == tmp_path / "llama"


# In the wrong recipe


@pytest.mark.parametrize("asked", ["bf16", "fp32", "llama-fp8", "modelopt-int8-sq", "modelopt-int4-awq"])
def test_the_recipe_it_would_be_is_named(folder: Path, store: CheckpointStore, asked: str) -> None:
    told = refused(store, folder, recipe_named(asked))

    assert told == "is quantized: FP8 with FP8 KV cache; name the recipe modelopt-fp8"


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "modelopt-fp8"])
def test_every_recipe_is_recognized(tiny: Model, tmp_path: Path, store: CheckpointStore, name: str) -> None:
    write_quantized(tmp_path / "llama", tiny, recipe_named(name), Path(tiny.source))

    assert refused(store, tmp_path / "llama").endswith(f" with BF16 KV cache; name the recipe {name}")


UNKNOWN = "is quantized: {}, which no recipe of the catalog describes{}; give the BF16 checkpoint it was made from"


@pytest.mark.parametrize(
    ("changes", "what", "differing"),
    [
        ({"quant_algo": "NVFP4"}, "NVFP4 with FP8 KV cache", ""),
        ({"quant_algo": None}, "no weights with FP8 KV cache", ""),
        (
            {"exclude_modules": []},
            "FP8 with FP8 KV cache",
            ", modelopt-fp8 neither: lm_head is not excluded in hf_quant_config.json",
        ),
        (
            {"exclude_modules": ["lm_head", "model.layers.1.mlp.up_proj"]},
            "FP8 with FP8 KV cache",
            ", modelopt-fp8 neither: model.layers.1.mlp.up_proj is excluded in hf_quant_config.json, though quantized",
        ),
    ],
)
def test_what_no_recipe_describes_is_told(
    folder: Path, store: CheckpointStore, changes: Mapping[str, Any], what: str, differing: str
) -> None:
    change_quantization(folder, **changes)

    assert refused(store, folder).startswith(UNKNOWN.format(what, differing))


def test_the_recipe_that_says_what_is_there_is_named(folder: Path, store: CheckpointStore) -> None:
    change_quantization(folder, kv_cache_quant_algo=None)

    assert "is quantized: FP8 with BF16 KV cache; name the recipe modelopt-fp8-bf16kv" in refused(store, folder)


def test_a_cache_of_a_scheme_that_nobody_reads_is_told(folder: Path, store: CheckpointStore) -> None:
    flatten_quantization(folder)
    change_json(folder / "hf_quant_config.json", kv_cache_scheme="FP8")

    assert "is quantized: FP8 with an unknown (FP8) KV cache, which no recipe" in refused(store, folder)


def test_a_checkpoint_in_bf16_is_quantized_as_before(tiny: Model, store: CheckpointStore, maker: Maker) -> None:
    maker.model = tiny

    assert store.get(tiny, FP8).path.parent == store.root / "entries"
    assert store.get(tiny, recipe_named("bf16")).path == Path(tiny.source)


# Not what it says of itself


def one_layer_left_out(found: Tensors) -> None:
    _, shape, content = found["model.layers.1.mlp.up_proj.weight"]
    found["model.layers.1.mlp.up_proj.weight"] = ("BF16", shape, content * 2)


def no_kv_scales(found: Tensors) -> None:
    for layer in range(4):
        del found[f"model.layers.{layer}.self_attn.k_proj.k_scale"]


def nothing_measured(found: Tensors) -> None:
    for name in found:
        if name.endswith("input_scale"):
            found[name] = ("F32", (1,), struct.pack("<f", 1.0))


def scale_of_no_number(found: Tensors) -> None:
    found["model.layers.0.self_attn.v_proj.v_scale"] = ("F32", (), struct.pack("<f", float("nan")))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (one_layer_left_out, "model.layers.1.mlp.up_proj.weight is BF16 [512, 256], intended F8_E4M3 [512, 256]"),
        (no_kv_scales, "self_attn.k_proj.k_scale and 1 more are missing"),
        (nothing_measured, "every input_scale is 1: nothing was measured"),
        (scale_of_no_number, "model.layers.0.self_attn.v_proj.v_scale is not finite"),
    ],
)
def test_tensors_that_are_not_as_the_recipe_says_are_named(
    folder: Path, store: CheckpointStore, change: Callable[[Tensors], None], problem: str
) -> None:
    change_tensors(folder, change)

    first, second = refused(store, folder).splitlines()

    assert first == "is not my-llama-fp8 in the recipe modelopt-fp8; 1 thing wrong:"
    assert second.strip().endswith(problem)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, store: CheckpointStore) -> None:
    (folder / "tokenizer.json").unlink()

    assert "there is no tokenizer (tokenizer.json or tokenizer.model)" in refused(store, folder)


def test_a_rope_that_a_runtime_would_not_see_is_refused_with_what_to_do(folder: Path, store: CheckpointStore) -> None:
    change_json(folder / "config.json", rope_theta=None, rope_scaling=None)

    told = refused(store, folder)

    assert (
        "transformers 4, as TensorRT-LLM has it, reads the rotary embedding rope_type default, rope_theta 10000" in told
    )
    assert "; meant is rope_type llama3, rope_theta 500000, " in told
    assert "Write rope_theta and rope_scaling beside rope_parameters" in told


def test_a_download_that_broke_off_is_refused_with_its_file(folder: Path, store: CheckpointStore) -> None:
    rewrite_as_nvidia(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()

    assert "model-00002-of-00002.safetensors: is missing" in refused(store, folder)


def test_a_checkpoint_of_another_shape_is_refused(folder: Path, store: CheckpointStore) -> None:
    model = model_named(str(folder))
    change_json(folder / "config.json", vocab_size=1024)

    with pytest.raises(BadCheckpoint, match="vocab_size is 1024 and not 512"):
        store.get(model, FP8)


# Quantized by others


@pytest.mark.parametrize("recipe", ["bf16", "llama-fp8", "modelopt-fp8"])
def test_metas_own_fp8_is_refused_with_the_recipe_that_comes_closest(
    folder: Path, store: CheckpointStore, recipe: str
) -> None:
    (folder / "hf_quant_config.json").unlink()
    inline = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
    change_json(folder / "config.json", quantization_config=inline)

    assert refused(store, folder, recipe_named(recipe)) == (
        "is quantized by fbgemm_fp8, as Meta publishes FP8, which TensorRT-LLM does not read any more "
        '("Unsupported quantization_config"); test the BF16 checkpoint in the recipe llama-fp8 instead: of the same '
        "layers ModelOpt makes FP8 with a scale for each row. It lacks Meta's cap of 1,200 on activations, which cannot "
        "be exported"
    )


@pytest.mark.parametrize(
    ("inline", "by"),
    [
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"bits": 4}, "something that it does not name"),
        ("fp8", "something that it does not name"),
    ],
)
@pytest.mark.parametrize("recipe", ["bf16", "modelopt-fp8"])
def test_other_libraries_are_refused_by_name(
    folder: Path, store: CheckpointStore, inline: object, by: str, recipe: str
) -> None:
    (folder / "hf_quant_config.json").unlink()
    change_json(folder / "config.json", quantization_config=inline)

    told = refused(store, folder, recipe_named(recipe))

    assert told.startswith(
        f"is quantized by {by}, and only checkpoints of ModelOpt are taken as they are; give the BF16"
    )


def test_a_file_that_was_not_copied_along_is_named(folder: Path, store: CheckpointStore) -> None:
    (folder / "hf_quant_config.json").unlink()

    told = refused(store, folder)

    assert told.startswith(
        "/hf_quant_config.json: is missing, and config.json says that ModelOpt quantized this; copy it"
    )


@pytest.mark.parametrize("content", ["{}", '{"producer": {"name": "modelopt"}}', '{"quantization": "FP8"}'])
def test_a_file_that_does_not_say_how_is_refused(folder: Path, store: CheckpointStore, content: str) -> None:
    (folder / "hf_quant_config.json").write_text(content)

    assert refused(store, folder) == "/hf_quant_config.json: has no mapping called quantization, and no quant_algo"


# By name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    return tmp_path / "huggingface" / "hub"


@pytest.fixture
def known(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The tiny model, as if the catalog knew it."""
    model = replace(
        tiny, name="tiny-llama", source="meta-llama/Tiny-Llama", published={FP8.name: "nvidia/Tiny-Llama-FP8"}
    )
    monkeypatch.setitem(models(), model.name, model)
    return model


def test_what_is_published_and_here_comes_first(
    hub: Path, known: Model, tiny: Model, folder: Path, store: CheckpointStore
) -> None:
    put_in_hub(hub, "meta-llama/Tiny-Llama", Path(tiny.source))
    rewrite_as_nvidia(folder)
    snapshot = put_in_hub(hub, "nvidia/Tiny-Llama-FP8", folder)

    found = store.get(known, FP8)

    assert (found.path, found.versions) == (snapshot, {"nvidia-modelopt": "0.37.0"})


def lose_a_shard(snapshot: Path) -> None:
    (snapshot / "model-00001-of-00002.safetensors").unlink()


def lose_its_description(snapshot: Path) -> None:
    (snapshot / "hf_quant_config.json").unlink()


@pytest.mark.parametrize("lose", [lose_a_shard, lose_its_description])
def test_what_is_here_in_bf16_is_quantized_where_the_published_one_is_not_whole(
    hub: Path,
    known: Model,
    tiny: Model,
    folder: Path,
    store: CheckpointStore,
    maker: Maker,
    lose: Callable[[Path], None],
) -> None:
    put_in_hub(hub, "meta-llama/Tiny-Llama", Path(tiny.source))
    rewrite_as_nvidia(folder)
    lose(put_in_hub(hub, "nvidia/Tiny-Llama-FP8", folder))
    maker.model = tiny

    found = store.get(known, FP8)

    assert maker.asked == ["quantize"]
    assert (found.path.parent, found.versions) == (store.root / "entries", {"nvidia-modelopt": "0.47.0"})


def test_the_published_one_is_downloaded_where_nothing_is_here(
    hub: Path, known: Model, folder: Path, store: CheckpointStore, maker: Maker
) -> None:
    rewrite_as_nvidia(folder)
    maker.remote["nvidia/Tiny-Llama-FP8"] = folder

    assert store.get(known, FP8).path == folder
    assert maker.asked == ["fetch nvidia/Tiny-Llama-FP8"]


@pytest.mark.parametrize(("recipe", "work"), [("bf16", []), ("llama-fp8", ["quantize"])])
def test_other_recipes_are_of_the_models_own_weights(
    hub: Path,
    known: Model,
    tiny: Model,
    folder: Path,
    store: CheckpointStore,
    maker: Maker,
    recipe: str,
    work: list[str],
) -> None:
    put_in_hub(hub, "nvidia/Tiny-Llama-FP8", folder)
    maker.remote["meta-llama/Tiny-Llama"] = Path(tiny.source)
    maker.model = tiny

    store.get(known, recipe_named(recipe))

    assert maker.asked == ["fetch meta-llama/Tiny-Llama", *work]


def test_offline_both_ids_are_named(
    hub: Path, known: Model, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(EngineError) as caught:
        store.get(known, FP8)

    assert str(caught.value) == (
        "tiny-llama: neither nvidia/Tiny-Llama-FP8, which is quantized already, nor meta-llama/Tiny-Llama is, as a whole, "
        f"in the cache of Hugging Face, {hub}, and HF_HUB_OFFLINE is set; run `hf download nvidia/Tiny-Llama-FP8` where "
        "there is a network, or `hf download meta-llama/Tiny-Llama` to have it quantized here, or test the path of a "
        "checkpoint instead of the name"
    )


def test_a_published_one_that_is_not_the_recipe_is_refused(
    hub: Path, known: Model, folder: Path, store: CheckpointStore
) -> None:
    change_quantization(folder, kv_cache_quant_algo=None)
    put_in_hub(hub, "nvidia/Tiny-Llama-FP8", folder)

    with pytest.raises(BadCheckpoint, match="is quantized: FP8 with BF16 KV cache; name the recipe"):
        store.get(known, FP8)


@pytest.mark.parametrize("name", ["meta-llama/Tiny-Llama", "nvidia/Tiny-Llama-FP8"])
def test_an_id_the_catalog_knows_is_its_model(hub: Path, known: Model, name: str) -> None:
    assert model_named(name) is known


def test_an_id_in_the_cache_is_the_model_that_lies_there(hub: Path, folder: Path, store: CheckpointStore) -> None:
    rewrite_as_nvidia(folder)
    snapshot = put_in_hub(hub, "somebody/Another-Llama-FP8", folder)

    model = model_named("somebody/Another-Llama-FP8")

    assert (model.name, model.layers, model.source) == ("another-llama-fp8", 4, str(snapshot))
    assert store.get(model, FP8).path == snapshot


def test_an_id_that_is_nowhere_is_told_with_the_command(hub: Path) -> None:
    with pytest.raises(UsageError) as caught:
        model_named("somebody/Another-Llama")

    assert str(caught.value).startswith(
        "unknown model 'somebody/Another-Llama': it is not in the catalog, no folder with a config.json, and not in the "
        f"cache of Hugging Face, {hub}; run `hf download somebody/Another-Llama`, or name one of the catalog; "
    )


def test_a_folder_called_like_an_id_is_the_folder(
    hub: Path, known: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "meta-llama" / "Tiny-Llama", layers=4)
    monkeypatch.chdir(tmp_path)

    assert model_named("meta-llama/Tiny-Llama").source == "meta-llama/Tiny-Llama"
    assert model_named("meta-llama/Tiny-Llama").published == {}


# What the runtime's transformers reads


def test_both_spellings_are_read_by_every_version(folder: Path) -> None:
    for version in ("4.57.3", "5.0.0", "5.23.1"):
        check_rope(folder, version)


def test_transformers_4_does_not_see_rope_parameters(tiny: Model) -> None:
    path = Path(tiny.source)

    check_rope(path, "5.0.0rc1")
    with pytest.raises(BadCheckpoint) as caught:
        check_rope(path, "4.57.3")

    assert caught.value.path == path / "config.json"
    assert (
        "config.json: transformers 4.57.3, which this runtime has, reads the rotary embedding rope_type default, "
        "rope_theta 10000 from it; meant is rope_type llama3, rope_theta 500000, "
    ) in str(caught.value)
    assert "or export it again under the transformers of the runtime" in str(caught.value)


def test_every_version_reads_the_older_spelling(tiny: Model, tmp_path: Path) -> None:
    config = json.loads((Path(tiny.source) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    change_json(tmp_path / "config.json", rope_parameters=None, rope_theta=500000.0, rope_scaling=scaling)

    for version in ("4.57.3", "5.0.0"):
        check_rope(tmp_path, version)


def test_a_version_that_is_none_is_no_answer(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown"):
        check_rope(folder, "unknown")


def test_the_catalog_publishes_recipes_it_knows() -> None:
    published = {name: dict(model.published) for name, model in models().items() if model.published}

    assert published == {
        "llama-3.1-8b": {"modelopt-fp8": "nvidia/Llama-3.1-8B-Instruct-FP8"},
        "llama-3.1-70b": {"modelopt-fp8": "nvidia/Llama-3.1-70B-Instruct-FP8"},
        "llama-3.1-405b": {"modelopt-fp8": "nvidia/Llama-3.1-405B-Instruct-FP8"},
        "llama-3.3-70b": {"modelopt-fp8": "nvidia/Llama-3.3-70B-Instruct-FP8"},
    }
    assert recipe_named("modelopt-fp8").kv_cache == Number.FP8


def test_a_network_with_drawn_weights_is_published_nowhere() -> None:
    assert model_named("llama-3.1-8b@random").published == {}
