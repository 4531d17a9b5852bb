"""LLM(...) for an engine: everything that decides is said, and said in the words of the version."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from builders import case
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.engines.trtllm.arguments import (
    LEFT_OUT,
    RENAMED,
    STREAM_INTERVAL,
    cuda_graphs,
    flat,
    said,
    wanted,
)
from pytest_llamaperf.engines.trtllm.contract import known_at
from pytest_llamaperf.engines.trtllm.nodes import Nodes
from pytest_llamaperf.errors import Unsupported
from pytest_llamaperf.limits import Limits

LARGE = "tensorrt-llm/llama-3.1-405b/modelopt-fp8/{layout}/max-throughput-2048-128"
HERE = Nodes()


def spec(layout: str = "tp8", **limits: Any) -> EngineSpec:
    found = EngineSpec.of(case(LARGE.format(layout=layout)))
    return dataclasses.replace(found, limits=dataclasses.replace(found.limits, **limits))


def everything(path: str) -> bool:
    return True


def without(*names: str) -> Callable[[str], bool]:
    """Accepts all but these."""
    return lambda path: path not in names


def of_version(text: str) -> Callable[[str], bool]:
    return lambda path: known_at(Version(text), path)


LIMITS = Limits(1024, 8192, kv_fraction=0.9, chunked_prefill=False, cuda_graph_batch_sizes=(1, 2), max_seq_len=2176)


def test_everything_that_decides_speed_or_answers_is_said() -> None:
    plain = dataclasses.replace(spec(), limits=LIMITS)

    assert wanted(plain, "/a/checkpoint", HERE) == {
        "model": "/a/checkpoint",
        "tokenizer": "/a/checkpoint",
        "tensor_parallel_size": 8,
        "pipeline_parallel_size": 1,
        "max_batch_size": 1024,
        "max_num_tokens": 8192,
        "max_seq_len": 2176,
        "enable_chunked_prefill": False,
        "kv_cache_config": {"free_gpu_memory_fraction": 0.9, "enable_block_reuse": False, "dtype": "auto"},
        "cuda_graph_config": {"batch_sizes": [1, 2, 1024], "enable_padding": True},
        "stream_interval": STREAM_INTERVAL,
        "return_perf_metrics": True,
    }


@pytest.mark.parametrize(("layout", "tp", "pp"), [("tp8", 8, 1), ("tp4-pp2", 4, 2), ("pp8", 1, 8)])
def test_a_layout_is_said_as_two_sizes(layout: str, tp: int, pp: int) -> None:
    arguments = wanted(spec(layout), "/a/checkpoint", HERE)

    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (tp, pp)


@pytest.mark.parametrize("nodes", [HERE, Nodes(1, 8)])
def test_on_one_node_nothing_is_said_of_nodes(nodes: Nodes) -> None:
    assert "gpus_per_node" not in wanted(spec("tp8"), "/a/checkpoint", nodes)


def test_over_several_nodes_the_gpus_of_one_are_said() -> None:
    assert wanted(spec("tp8-pp2"), "/a/checkpoint", Nodes(2, 8))["gpus_per_node"] == 8


@pytest.mark.parametrize("name", ["backend", "quant_config", "build_config"])
def test_what_is_deprecated_or_may_contradict_the_checkpoint_is_not_said(name: str) -> None:
    assert name not in wanted(spec(), "/a/checkpoint", Nodes(2, 8))


def test_arguments_can_travel_to_the_other_process() -> None:
    arguments = wanted(spec(), "/a/checkpoint", Nodes(2, 8))

    assert json.loads(json.dumps(arguments)) == arguments


@given(most=st.integers(1, 5000), sizes=st.lists(st.integers(1, 9000), max_size=20))
def test_graphs_never_exceed_the_batch_and_always_hold_it(most: int, sizes: list[int]) -> None:
    graphs = cuda_graphs(spec(max_batch_size=most, cuda_graph_batch_sizes=tuple(sizes)))

    assert graphs["batch_sizes"][-1] == most
    assert graphs["batch_sizes"] == sorted(set(graphs["batch_sizes"]))
    assert set(graphs["batch_sizes"]) <= {*sizes, most}
    assert graphs["enable_padding"] is True


def test_where_all_is_accepted_nothing_is_renamed_or_left_out() -> None:
    arguments = wanted(spec(), "/a/checkpoint", Nodes(2, 8))

    assert said(arguments, everything) == (arguments, ())


def test_the_arguments_that_were_wanted_stay_as_they_are() -> None:
    arguments = wanted(spec(), "/a/checkpoint", HERE)

    said(arguments, of_version("1.0.0"))

    assert arguments == wanted(spec(), "/a/checkpoint", HERE)


def test_the_type_of_the_cache_has_another_name_and_place_in_1_0() -> None:
    spoken, _ = said(wanted(spec(), "/a/checkpoint", HERE), of_version("1.0.0"))

    assert spoken["kv_cache_dtype"] == "auto"
    assert set(spoken["kv_cache_config"]) == {"free_gpu_memory_fraction", "enable_block_reuse"}


def test_the_new_name_is_used_where_both_are_accepted() -> None:
    spoken, _ = said(wanted(spec(), "/a/checkpoint", HERE), everything)

    assert "kv_cache_dtype" not in spoken


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_may_be_left_out_is_told(name: str) -> None:
    spoken, notes = said(wanted(spec(), "/a/checkpoint", HERE), without(name, *RENAMED.values()))

    assert name not in flat(spoken)
    assert notes == (f"{name} is not accepted: {LEFT_OUT[name]}",)


def test_1_0_leaves_out_its_own_times_and_nothing_else() -> None:
    arguments = wanted(spec(), "/a/checkpoint", HERE)

    spoken, notes = said(arguments, of_version("1.0.0"))

    assert set(flat(arguments)) - set(flat(spoken)) == {"kv_cache_config.dtype", "return_perf_metrics"}
    assert len(notes) == 1


@pytest.mark.parametrize("version", ["1.1.0", "1.2.1", "1.3.0rc12"])
def test_from_1_1_on_everything_is_said_as_it_is(version: str) -> None:
    arguments = wanted(spec(), "/a/checkpoint", HERE)

    assert said(arguments, of_version(version)) == (arguments, ())


@pytest.mark.parametrize("name", sorted(flat(wanted(spec(), "/a/checkpoint", Nodes(2, 8))).keys() - LEFT_OUT.keys()))
def test_anything_else_that_is_not_accepted_is_refused_by_name(name: str) -> None:
    arguments = wanted(spec(), "/a/checkpoint", Nodes(2, 8))

    with pytest.raises(Unsupported, match=f"does not accept {name} for LLM"):
        said(arguments, without(name))


def test_nested_mappings_are_flattened_to_dotted_names() -> None:
    assert flat({"a": 1, "b": {"c": [1, 2], "d": {"e": None}}}) == {"a": 1, "b.c": [1, 2], "b.d.e": None}


PATHS = sorted({*flat(wanted(spec(), "/a/checkpoint", Nodes(2, 8))), *RENAMED.values()})


@given(refused=st.sets(st.sampled_from(PATHS), max_size=4), nodes=st.sampled_from([HERE, Nodes(2, 8)]))
def test_no_argument_is_ever_lost_in_silence(refused: set[str], nodes: Nodes) -> None:
    arguments = wanted(spec(), "/a/checkpoint", nodes)
    accepts = without(*refused)
    told = [name for name in flat(arguments) if name in refused and name not in LEFT_OUT]
    if told:
        with pytest.raises(Unsupported, match="|".join(told)):
            said(arguments, accepts)
        return
    spoken, notes = said(arguments, accepts)

    heard = flat(spoken)
    assert all(accepts(name) for name in heard)
    for name, value in flat(arguments).items():
        noted = any(note.startswith(f"{name} is not accepted: ") for note in notes)
        spelling = name if name in heard else RENAMED.get(name)
        assert (spelling in heard and heard[spelling] == value) != noted
    assert len(heard) + len(notes) == len(flat(arguments))
