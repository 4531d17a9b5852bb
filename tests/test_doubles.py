"""The doubles of TensorRT-LLM keep its contract: what is built on them is built on what TensorRT-LLM does.

One process for each version answers all questions about it, because two versions cannot be imported into one; another
does everything wrong that can be done wrong without dying of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import change_json, write_source

DOUBLES = Path(__file__).parent / "doubles"
VERSIONS = {"v1_0": "1.0.0", "v1_2": "1.2.1", "v1_3rc": "1.3.0rc12"}
PATIENCE = 60.0  # seconds, on a machine that does other things too
LONGEST = 10  # tokens of an answer
ROOM = 96  # tokens of a prompt and its answer
PROMPTS = [[(31 * number + 7 * i * i + 11 * i + 5) % 250 for i in range(length)] for number, length in
           enumerate((1, 3, 9, 20, 2, 14, 5))]  # fmt: skip
SCORED = PROMPTS[3]

# An FP8 checkpoint of the first one, cache included, and what the reference engine makes of both.
REFERENCE = """
import json, shutil, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from pytest_llamaperf.children.torch_llama.rank import Rank, Settings

source, quantized, asked = Path(sys.argv[1]), Path(sys.argv[2]), json.load(sys.stdin)
shutil.copytree(source, quantized)
tensors = load_file(source / "model.safetensors")
for name, weight in list(tensors.items()):
    if not name.endswith("_proj.weight"):
        continue
    module = name.removesuffix(".weight")
    scale = weight.abs().amax().float() / 448
    tensors[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
    tensors[f"{module}.weight_scale"], tensors[f"{module}.input_scale"] = scale, torch.tensor(0.05)
    if module.endswith(("k_proj", "v_proj")):
        tensors[f"{module}.{module[-6]}_scale"] = torch.tensor(0.02)
save_file(tensors, quantized / "model.safetensors")
said = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
(quantized / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": said}))
config = json.loads((quantized / "config.json").read_text())
config["quantization_config"] = {
    "quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}
}
(quantized / "config.json").write_text(json.dumps(config))

answers = {}
recipe = {"attention": "bf16", "feed_forward": "bf16", "kv_cache": "bf16", "bf16_layers": 0}
for name, folder in (("plain", source), ("quantized", quantized)):
    settings = Settings(
        str(folder), {}, recipe, 1, 1, slots=3, positions=96, most_prompt_tokens=64, device="cpu", threads=1
    )
    rank = Rank(settings, 0, Path("nowhere"), lambda text, done, total: None)
    answers[name] = rank.generate(asked["prompts"], asked["longest"], None)
    if name == "plain":
        answers["scores"] = rank.score([asked["scored"]], 0.0)
print(json.dumps(answers))
"""

# Opens an LLM in this process, runs trtllm-bench in it, and tells what an act comes to.
TELLING = """
import asyncio, json, os, sys, threading, time
from pathlib import Path
import tensorrt_llm
from tensorrt_llm import LLM, SamplingParams
from tensorrt_llm.llmapi import KvCacheConfig, QuantConfig
from trtllm_double.bench import bench

asked = json.load(sys.stdin)
source, prompts, longest = asked["source"], asked["prompts"], asked["longest"]
told = {}

def opened(model=source, **changes):
    settings = {"max_batch_size": 3, "max_num_tokens": 64, "max_seq_len": 96}
    changes.setdefault("kv_cache_config", KvCacheConfig(enable_block_reuse=False))
    return LLM(model, **{**settings, **changes})

def exactly(tokens, **more):
    return SamplingParams(max_tokens=tokens, ignore_eos=True, **more)

def what(act):
    try:
        return ["returned", act()]
    except Exception as problem:
        return [type(problem).__name__, str(problem)]

def benched(report, *options, latency=False):
    arguments = ["--model", "meta/llama", "--model_path", asked["quantized"], "latency" if latency else "throughput"]
    arguments += ["--dataset", asked["dataset"], "--report_json", report, *options]
    if not latency:
        arguments += ["--max_batch_size", "4", "--max_num_tokens", "64", "--concurrency", "4"]
    try:
        bench(LLM).main(arguments, standalone_mode=False)
    except SystemExit as ended:
        return ended.code or 0
    return 0
"""

CONTRACT = """
import importlib.metadata
from tensorrt_llm.llmapi.llm_args import TorchLlmArgs

told["versions"] = [tensorrt_llm.__version__, importlib.metadata.version("tensorrt_llm")]
told["arguments"] = sorted(TorchLlmArgs.model_fields)
told["cache fields"] = sorted(KvCacheConfig.model_fields)
told["unknown"] = what(lambda: opened(nonsense=1))
told["wrong type"] = what(lambda: opened(max_batch_size="four"))
told["unknown of the cache"] = what(lambda: KvCacheConfig(nonsense=1))
told["unknown of sampling"] = what(lambda: SamplingParams(nonsense=1))
told["no checkpoint"] = what(lambda: opened("/no/where"))
told["no tokenizer"] = what(lambda: opened(tokenizer="/no/where"))
told["foreign"] = what(lambda: opened(asked["foreign"]))
told["flat"] = what(lambda: opened(asked["flat"]).args.quant_config.quant_algo)
told["contradicted"] = what(lambda: opened(asked["quantized"], quant_config=QuantConfig(quant_algo="NVFP4")))
os.environ["TRTLLM_DOUBLE_GPUS"] = "1"
told["too few GPUs"] = what(lambda: opened(tensor_parallel_size=2))
del os.environ["TRTLLM_DOUBLE_GPUS"]

with opened(asked["quantized"], tensor_parallel_size=2) as llm:
    told["quantized"] = [o.outputs[0].token_ids for o in llm.generate(prompts, exactly(longest), use_tqdm=False)]
    told["quantization"] = [llm.args.quant_config.quant_algo, llm.args.quant_config.kv_cache_quant_algo]

names = TorchLlmArgs.model_fields
cache = {"kv_cache_dtype": "fp8"} if "kv_cache_dtype" in names else {"kv_cache_config": KvCacheConfig(dtype="fp8")}
with opened(**cache) as llm:
    told["cache asked for"] = llm.args.quant_config.kv_cache_quant_algo
with opened(skip_tokenizer_init=True) as llm:
    told["no end"] = what(lambda: llm.generate(prompts[0]))
with opened(tokenizer=asked["ending"]) as llm:
    told["ended by the tokenizer"] = llm.generate(prompts[3], SamplingParams(max_tokens=longest)).outputs[0].token_ids

llm = opened()
before = time.monotonic()
outputs = llm.generate(prompts, exactly(longest, return_perf_metrics=True), use_tqdm=False)
told["time"] = time.monotonic() - before
told["plain"] = [output.outputs[0].token_ids for output in outputs]
told["endings"] = sorted({output.outputs[0].finish_reason for output in outputs})
told["metrics"] = {name.value: value for name, value in outputs[0].metrics_dict.items()}
timing = outputs[0].outputs[0].request_perf_metrics.timing_metrics
told["arrived until last token"] = (timing.last_token_time - timing.arrival_time).total_seconds()
told["of one token"] = [
    name.value for name in llm.generate(prompts[0], exactly(1, return_perf_metrics=True)).metrics_dict
]
told["effective"] = [llm.args.max_batch_size, llm.args.kv_cache_config.enable_block_reuse,
                     llm.args.cuda_graph_config is not None, llm.args.quant_config.quant_algo]

fourth = told["plain"][3][3]
def ended(**params):
    output = llm.generate(prompts[3], SamplingParams(max_tokens=longest, **params)).outputs[0]
    return [output.token_ids, output.finish_reason, output.stop_reason]
told["ended by end_id"] = ended(end_id=fourth)
told["not ended"] = ended(end_id=-1)
told["ended by a stop"] = ended(end_id=-1, stop_token_ids=[fourth])
told["not before"] = ended(end_id=fourth, min_tokens=6)
told["default length"] = llm.generate(prompts[1], SamplingParams(end_id=-1)).outputs[0].length
hi = llm.tokenizer.encode("Hi", add_special_tokens=False)
told["text"] = [hi, llm.tokenizer.decode([*hi, 257]), llm.tokenizer.decode([*hi, 257], skip_special_tokens=True)]

told["of text"] = llm.generate("Hi", exactly(1)).prompt_token_ids
told["not greedy"] = what(lambda: llm.generate(prompts[0], SamplingParams(temperature=0.7)))
unwanted = llm.generate_async(prompts[0], exactly(80))
unwanted.abort()
told["aborted"] = [unwanted.aborted(), unwanted.result().outputs[0].finish_reason]

async def streamed(llm, count):
    seen = []
    output = llm.generate_async(prompts[3], exactly(count), streaming=True)
    async for part in output:
        seen.append([part is output, list(part.outputs[0].token_ids), part.outputs[0].token_ids_diff, part.finished])
    return seen
told["streamed"] = asyncio.run(streamed(llm, longest))
with opened(stream_interval=4) as rare:
    told["streamed rarely"] = [len(part[1]) for part in asyncio.run(streamed(rare, longest))]
told["streamed without a loop"] = [
    len(part.outputs[0].token_ids) for part in llm.generate_async(prompts[3], exactly(3), streaming=True)
]
outside = llm.generate_async(prompts[0], exactly(2))
async def waited(output):
    return await output.aresult()
told["no loop"] = what(lambda: asyncio.run(waited(outside)))
told["timeout is not heeded"] = len(llm.generate_async(prompts[0], exactly(longest)).result(timeout=0).outputs[0].token_ids)
async def inside():
    return (await llm.generate_async(prompts[0], exactly(2))).outputs[0].token_ids
told["awaited"] = asyncio.run(inside())

told["prompt too long for a step"] = what(lambda: llm.generate_async([1] * 65))
with opened(enable_chunked_prefill=True) as chunking:
    told["chunked"] = chunking.generate([1] * 80, exactly(50)).outputs[0].length
    told["prompt too long for a slot"] = what(lambda: chunking.generate([1] * 96))
    told["used on"] = chunking.generate(prompts[0], exactly(2)).outputs[0].length

def scored(llm, **params):
    output = llm.generate(asked["scored"], exactly(2, **params))
    logits = output.context_logits
    if logits is not None:
        scores = logits.float().log_softmax(-1)
        after = asked["scored"][1:]
        scores = [list(logits.shape), str(logits.dtype), [float(scores[i, t]) for i, t in enumerate(after)
                                                          if i < len(scores)]]
    rows = [{t: [p.logprob, p.rank] for t, p in row.items()} for row in output.outputs[0].prompt_logprobs]
    return scores if logits is not None else rows
told["logprobs"] = what(lambda: scored(llm, prompt_logprobs=2))
told["logits"] = what(lambda: scored(llm, return_context_logits=True))
answer = llm.generate(prompts[3], exactly(3, logprobs=1)).outputs[0]
told["logprobs of answers"] = [[len(row), token in row] for row, token in zip(answer.logprobs, answer.token_ids)]
with opened(kv_cache_config=KvCacheConfig()) as reusing:
    reusing.generate(asked["scored"][:15], exactly(1))
    told["logits after reuse"] = what(lambda: scored(reusing, return_context_logits=True)[0][0])
    reusing.generate(prompts[1], exactly(1))

llm.shutdown()
llm.shutdown()
told["after shutdown"] = what(lambda: llm.generate(prompts[0]))

os.environ["TRTLLM_DOUBLE_GPU_NAME"] = "NVIDIA H200"
told["benchmarks"] = {
    "streaming": benched("streaming.json", "--streaming", "--request_json", "requests.json", "--output_json", "texts.json"),
    "plain": benched("plain.json", "--tp", "2"),
    "latency": benched("latency.json", latency=True),
    "overruled": 0 if "v1_0" in tensorrt_llm.__file__ else benched(
        "overruled.json", "--extra_llm_api_options", asked["overruling"]
    ),
}
del os.environ["TRTLLM_DOUBLE_GPU_NAME"]
os.environ["TRTLLM_DOUBLE_FAULT"] = "request_error"
told["benchmark of which a request fails"] = benched("failing.json", "--warmup", "0")
del os.environ["TRTLLM_DOUBLE_FAULT"]
told["benchmarks"]["chosen"] = benched("chosen.json", "--max_batch_size", "0")
Path("told.json").write_text(json.dumps(told))
"""

FAULTS = """
def at_work(name, act):
    os.environ["TRTLLM_DOUBLE_FAULT"] = name
    try:
        return what(act)
    finally:
        del os.environ["TRTLLM_DOUBLE_FAULT"]

def hangs(act):
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(1.0)
    return thread.is_alive()

def answered(**params):
    return opened().generate(prompts[3], exactly(longest, **params))

def after_it_broke():
    llm = opened()
    return [what(lambda: llm.generate(prompts[3], exactly(longest)))[0], what(lambda: llm.generate(prompts[0]))]

def one_of_two_requests():
    llm = opened()
    return [what(lambda: llm.generate(prompts[0], exactly(2)))[0], llm.generate(prompts[0], exactly(2)).outputs[0].length]

def clocks():
    output = opened(return_perf_metrics=True).generate(prompts[3], exactly(longest))
    timing = output.outputs[0].request_perf_metrics.timing_metrics
    e2e = {name.value: value for name, value in output.metrics_dict.items()}["e2e"]
    return e2e / (timing.last_token_time - timing.arrival_time).total_seconds()

def missing():
    rows = answered(prompt_logprobs=1).outputs[0].prompt_logprobs
    return [token for token, row in zip(prompts[3][1:], rows) if token not in row]

told["no such"] = at_work("nonsense", opened)
for name in ("oom_init", "oom_graphs", "worker_died_init", "gpu_count"):
    told[name] = at_work(name, opened)
for name in ("oom_run", "illegal_memory", "nccl"):
    told[name] = at_work(name, answered)
told["broken"] = at_work("oom_run", after_it_broke)
told["request_error"] = at_work("request_error", one_of_two_requests)
told["hang_init"] = at_work("hang_init", lambda: hangs(opened))
told["hang_run"] = at_work("hang_run", lambda: hangs(answered))
told["hang_shutdown"] = at_work("hang_shutdown", lambda: hangs(lambda: opened().shutdown()))
told["short_output"] = at_work("short_output", lambda: [(o := answered().outputs[0]).length, o.finish_reason])
told["wrong_config"] = at_work("wrong_config", lambda: opened().args.max_batch_size)
told["wrong_quant"] = at_work("wrong_quant", lambda: opened(asked["quantized"]).args.quant_config.quant_algo)
told["slow_clock"] = at_work("slow_clock", clocks)
told["missing_logprob"] = at_work("missing_logprob", missing)
told["truncated_logits"] = at_work("truncated_logits", lambda: len(answered(return_context_logits=True).context_logits))

os.environ["TRTLLM_DOUBLE_FAULT_ONCE"] = "mark"
Path("mark").write_text("1")
told["once, elsewhere"] = at_work("oom_init", lambda: bool(opened()))
Path("mark").unlink()
told["once, here"] = at_work("oom_init", opened)[0]
del os.environ["TRTLLM_DOUBLE_FAULT_ONCE"]

for name in asked["faults of the benchmark"]:
    status = at_work(name, lambda: benched(f"{name}.json", "--streaming", "--request_json", f"{name}.requests.json"))
    told[f"benchmark: {name}"] = status[1]
Path("told.json").write_text(json.dumps(told))
os._exit(0)  # some of what hangs would go on doing so
"""

FAULTS_OF_THE_BENCHMARK = (
    "oom_init", "worker_died_init", "gpu_count", "oom_run", "illegal_memory", "exit_1", "requests_failed",
    "exit_without_report", "sigint", "nan", "missing_key", "wrong_count", "wrong_tp", "wrong_batch",
    "wrong_quant", "wrong_version", "inconsistent", "short_output", "truncated_report", "bad_request_json",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Checkpoints and a dataset in one folder; each version answers once, when it is first asked."""

    folder: Path
    reference: dict[str, Any]

    def environment(self, version: str, **more: str) -> dict[str, str]:
        path = f"{DOUBLES / version / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **more}

    def asked(self) -> dict[str, Any]:
        names = ("source", "quantized", "foreign", "flat", "ending", "dataset", "overruling")
        return {
            **{name: str(self.folder / name) for name in names},
            "prompts": PROMPTS, "scored": SCORED, "longest": LONGEST,
            "faults of the benchmark": FAULTS_OF_THE_BENCHMARK,
        }  # fmt: skip

    def told(self, version: str, program: str) -> dict[str, Any]:
        """What a program of a version tells, in the folder where it leaves its reports."""
        folder = self.folder / f"{version}-{'faults' if program == FAULTS else 'contract'}"
        if not (folder / "told.json").exists():
            folder.mkdir(exist_ok=True)
            ended = subprocess.run(
                [sys.executable, "-c", TELLING + program], input=json.dumps(self.asked()), capture_output=True, text=True,
                cwd=folder, timeout=PATIENCE, check=False,
                env=self.environment(version, PYTHONPATH=str(DOUBLES / version)),
            )  # fmt: skip
            assert ended.returncode == 0, ended.stderr + ended.stdout
        answers: dict[str, Any] = json.loads((folder / "told.json").read_text())
        return {**answers, "folder": folder}

    @cached_property
    def faults(self) -> dict[str, Any]:
        return self.told("v1_3rc", FAULTS)

    def bench(self, version: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["trtllm-bench", *arguments], capture_output=True, text=True, cwd=self.folder, timeout=PATIENCE, check=False,
            env=self.environment(version, **more),
        )  # fmt: skip

    def throughput(self, *more: str, dataset: str = "dataset") -> list[str]:
        checkpoint = ["--model", "meta/llama", "--model_path", "source"]
        return [*checkpoint, "throughput", "--dataset", dataset, "--report_json", "report.json", *more]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("doubles")
    source = folder / "source"
    write_source(source)
    ended = subprocess.run(
        [sys.executable, "-c", REFERENCE, str(source), str(folder / "quantized")],
        input=json.dumps({"prompts": PROMPTS, "scored": SCORED, "longest": LONGEST}),
        capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    shutil.copytree(source, folder / "foreign")
    change_json(folder / "foreign" / "config.json", quantization_config={"quant_method": "fbgemm_fp8"})
    shutil.copytree(folder / "quantized", folder / "flat")
    change_json(folder / "flat" / "hf_quant_config.json", quant_algo="FP8", quantization=None)
    reference = json.loads(ended.stdout)
    shutil.copytree(source, folder / "ending")
    tokenizer = read(source, "tokenizer.json")["model"]
    tokenizer["vocab"]["<end>"] = reference["plain"][3][3]
    change_json(folder / "ending" / "tokenizer.json", model=tokenizer)
    change_json(folder / "ending" / "tokenizer_config.json", eos_token="<end>")
    write_dataset(folder / "dataset", requests=9, tokens=6)
    (folder / "overruling").write_text("max_batch_size: 2\nkv_cache_config: {enable_block_reuse: true}\n")
    return World(folder, reference)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def told(world: World, version: str) -> dict[str, Any]:
    return world.told(version, CONTRACT)


def write_dataset(path: Path, requests: int, tokens: int) -> None:
    lines = [{"task_id": n, "input_ids": [1 + n, 2, 3] * (1 + n % 3), "output_tokens": tokens} for n in range(requests)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def keys(value: Any) -> Any:
    """The names in a JSON object, all the way down; of percentiles, nothing."""
    if isinstance(value, dict) and "p50" not in value:
        return {name: keys(inner) for name, inner in value.items()}
    return None


# What it is.


def test_a_double_says_its_version_in_both_places(told: dict[str, Any], version: str) -> None:
    assert told["versions"] == [VERSIONS[version]] * 2


def test_versions_differ_in_what_they_take(world: World) -> None:
    old, new = (set(world.told(name, CONTRACT)["arguments"]) for name in ("v1_0", "v1_2"))

    assert {"kv_cache_dtype", "enable_trtllm_sampler", "enable_mixed_sampler", "normalize_log_probs"} <= old - new
    assert {"return_perf_metrics", "perf_metrics_max_requests", "sampler_type"} <= new - old
    assert ("dtype" in world.told("v1_0", CONTRACT)["cache fields"]) is False
    assert "dtype" in world.told("v1_2", CONTRACT)["cache fields"]


def test_the_stub_can_be_imported_and_has_nothing() -> None:
    program = "import tensorrt_llm, importlib.metadata as m; print(m.version('tensorrt_llm'), dir(tensorrt_llm))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(DOUBLES / "stub")},
    )  # fmt: skip

    assert ended.stdout.startswith("0.0.1")
    assert "LLM" not in ended.stdout


@pytest.mark.parametrize("name", [*VERSIONS, "stub"])
def test_metadata_is_found_without_importing(name: str) -> None:
    (found,) = Distribution.discover(name="tensorrt_llm", path=[str(DOUBLES / name)])

    assert found.version == VERSIONS.get(name, "0.0.1")


# What it refuses.


def test_what_is_unknown_or_of_a_wrong_type_is_refused_at_once(told: dict[str, Any], version: str) -> None:
    unknown = {
        "v1_0": ["ValidationError", "Extra inputs are not permitted"],
        "v1_2": ["ValueError", "LLM got invalid argument: nonsense"],
        "v1_3rc": ["ValueError", "LLM got invalid argument: nonsense"],
    }

    assert told["unknown"][0] == unknown[version][0]
    assert unknown[version][1] in told["unknown"][1]
    assert told["wrong type"][0] == "ValidationError"
    assert "max_batch_size" in told["wrong type"][1]
    assert told["unknown of the cache"][0] == "ValidationError"
    assert told["unknown of sampling"][0] == "TypeError"


@pytest.mark.parametrize(
    ("what", "type_name", "words"),
    [
        ("no checkpoint", "HFValidationError", "'/no/where'"),
        ("no tokenizer", "OSError", "Can't load tokenizer for '/no/where'"),
        ("foreign", "NotImplementedError", "Unsupported quantization_config"),
        ("contradicted", "ValueError", "Specified quant_algo NVFP4, conflicting"),
        ("too few GPUs", "RuntimeError", "Only 1 GPUs are available, but 2 are required."),
        ("prompt too long for a step", "ValueError", "should not exceed max_num_tokens (64)"),
        ("prompt too long for a slot", "RequestError", "must be greater than 0"),
        ("no loop", "AssertionError", "event loop was not present"),
        ("no end", "ValueError", "tokenizer is required to reset end_id"),
        ("not greedy", "NotImplementedError", "samples greedily only"),
        ("after shutdown", "RuntimeError", "LLM is shutting down"),
    ],
)
def test_errors_are_those_of_tensorrt_llm(told: dict[str, Any], what: str, type_name: str, words: str) -> None:
    assert told[what][0] == type_name
    assert words in told[what][1]


# What it answers.


def test_tokens_are_those_of_the_reference_engine(told: dict[str, Any], world: World) -> None:
    assert told["plain"] == world.reference["plain"]
    assert told["endings"] == ["length"]
    assert told["effective"] == [3, False, True, None]


def test_tokens_of_a_quantized_checkpoint_are_too_however_many_gpus_are_asked_for(
    told: dict[str, Any], world: World
) -> None:
    assert told["quantized"] == world.reference["quantized"]
    assert told["quantized"] != told["plain"]
    assert told["quantization"] == ["FP8", "FP8"]
    assert told["cache asked for"] == "FP8"


def test_a_flat_quantization_file_is_read_by_the_newest_only(told: dict[str, Any], version: str) -> None:
    assert told["flat"] == (["returned", "FP8"] if version == "v1_3rc" else ["KeyError", "'quantization'"])


def test_a_text_ends_where_a_token_says_so(told: dict[str, Any]) -> None:
    tokens = told["plain"][3]
    until = tokens.index(tokens[3]) + 1

    assert told["ended by end_id"] == [tokens[:until], "stop", None]
    assert told["ended by the tokenizer"] == tokens[:until]
    assert told["ended by a stop"] == [tokens[: until - 1], "stop", tokens[3]]
    assert told["not ended"] == [tokens, "length", None]
    assert len(told["not before"][0]) >= 6
    assert told["default length"] == 32
    assert told["aborted"] == [True, "cancelled"]


def test_longer_answers_than_there_is_room_for_are_cut_without_an_error(told: dict[str, Any]) -> None:
    assert told["chunked"] == ROOM - 80
    assert told["used on"] == 2


def test_text_becomes_tokens_and_back(told: dict[str, Any]) -> None:
    assert told["text"] == [[ord("H"), ord("i")], "Hi</s>", "Hi"]
    assert told["of text"] == [ord("H"), ord("i")]


def test_streaming_yields_one_object_that_grows(told: dict[str, Any]) -> None:
    tokens = told["plain"][3]

    assert told["streamed"] == [
        [True, tokens[: count + 1], [token], count == LONGEST - 1] for count, token in enumerate(tokens)
    ]
    assert told["streamed rarely"] == [1, 4, 8, 10]
    assert told["streamed without a loop"] == [1, 2, 3]
    assert told["awaited"] == told["plain"][0][:2]
    assert told["timeout is not heeded"] == LONGEST


def test_times_are_real_and_told_in_seconds(told: dict[str, Any], version: str) -> None:
    names = ["ttft", "tpot", "e2e", "request_queue_time"]
    if version == "v1_3rc":
        names += ["arrival_timestamp", "prefill_time", "decode_time", "inference_time", "prompt_tokens"]
        names += ["generation_tokens"]
    metrics = told["metrics"]

    assert list(metrics) == names
    assert 0 < metrics["request_queue_time"] < metrics["ttft"] < metrics["e2e"] < told["time"]
    assert metrics["e2e"] == pytest.approx(told["arrived until last token"], abs=2e-6)
    assert metrics["e2e"] == pytest.approx(metrics["ttft"] + (LONGEST - 1) * metrics["tpot"])
    assert "tpot" not in told["of one token"]


def test_prompt_logprobs_are_about_the_next_token(world: World) -> None:
    refused, top, with_its_token = (world.told(version, CONTRACT)["logprobs"] for version in VERSIONS)
    (logprobs,), (likely,) = world.reference["scores"]["logprobs"], world.reference["scores"]["likely"]
    following = [str(token) for token in SCORED[1:]]

    assert refused[0] == "ValueError"
    assert [len(row) for row in top[1]] == [2] * len(SCORED)
    assert all(str(token) in row for token, row in zip(likely, top[1], strict=False))
    assert any(token not in row for token, row in zip(following, top[1], strict=False))
    told = [row[token][0] for token, row in zip(following, with_its_token[1], strict=False)]
    assert told == pytest.approx(logprobs, abs=1e-3)
    last = with_its_token[1][-1]
    assert last[str(world.reference["plain"][PROMPTS.index(SCORED)][0])][1] == 1
    assert {rank for row in with_its_token[1] for _, rank in row.values()} > {1, 2}


def test_context_logits_score_a_prompt(world: World) -> None:
    refused, *others = (world.told(version, CONTRACT)["logits"] for version in VERSIONS)

    assert refused[0] == "ValueError"
    for _, (shape, dtype, scores) in others:
        assert (shape, dtype) == ([len(SCORED), 512], "torch.float32")
        assert scores == pytest.approx(world.reference["scores"]["logprobs"][0], abs=1e-3)


def test_what_was_reused_has_no_logits(world: World) -> None:
    assert world.told("v1_2", CONTRACT)["logits after reuse"] == ["returned", len(SCORED) - 15]


def test_logprobs_of_an_answer_tell_its_tokens(told: dict[str, Any]) -> None:
    assert told["logprobs of answers"] == [[1, True]] * 3


# trtllm-bench.


def test_options_differ_by_version(world: World) -> None:
    def options(version: str, subcommand: str) -> set[str]:
        shown = world.bench(version, "--model", "x", subcommand, "--help", COLUMNS="200").stdout
        return set(re.findall(r"--[\w-]+", shown))

    old, middle, new = ({name: options(version, name) for name in ("throughput", "latency")} for version in VERSIONS)

    assert middle["throughput"] - old["throughput"] == {
        "--custom_module_dirs", "--sampler_options", "--no_skip_tokenizer_init", "--image_data_format", "--data_device",
        "--disable_chunked_context",
    }  # fmt: skip
    assert old["throughput"] < middle["throughput"]
    assert new["throughput"] - middle["throughput"] == {"--config"}
    assert "--extra_llm_api_options" in middle["latency"] - old["latency"]
    assert not {"--max_batch_size", "--max_num_tokens", "--request_json", "--streaming"} & new["latency"]
    assert "--telemetry" in world.bench("v1_3rc", "--help").stdout
    assert "--telemetry" not in world.bench("v1_2", "--help").stdout


def test_all_benchmarks_end_well(told: dict[str, Any]) -> None:
    assert set(told["benchmarks"].values()) == {0}


def test_reports_have_the_blocks_of_their_version(told: dict[str, Any], version: str) -> None:
    report = read(told["folder"], "streaming.json")
    blocks = ["engine", "world_info", "request_info", "performance", "streaming_metrics", "dataset"]
    blocks += {"v1_0": [], "v1_2": ["machine"], "v1_3rc": ["machine", "energy"]}[version]

    assert sorted(report) == sorted(blocks)
    assert report["engine"] == {
        "model": "meta/llama", "model_path": report["engine"]["model_path"], "engine_dir": "None",
        "version": VERSIONS[version], "backend": "Pytorch", "dtype": "bfloat16", "kv_cache_dtype": "FP8",
        "quantization": "FP8",
    }  # fmt: skip
    assert "streaming_metrics" not in read(told["folder"], "plain.json")
    assert "streaming_metrics" in read(told["folder"], "latency.json")
    if version != "v1_0":
        assert report["machine"]["name"] == "NVIDIA H200"
        assert read(told["folder"], "chosen.json")["machine"] is None


def test_a_report_follows_from_its_requests(told: dict[str, Any]) -> None:
    report, requests = read(told["folder"], "streaming.json"), read(told["folder"], "requests.json")
    speed, streaming = report["performance"], report["streaming_metrics"]
    seconds = (max(r["end_timestamp"] for r in requests) - min(r["start_timestamp"] for r in requests)) / 1e9
    tokens = sum(r["num_total_output_tokens"] for r in requests)
    given = sum(r["num_input_tokens"] for r in requests)
    latencies = sorted(r["end_to_end_latency"] / 1e6 for r in requests)

    assert len(requests) == report["request_info"]["num_requests"] == report["dataset"]["num_requests"] == 9
    assert report["request_info"]["avg_output_length"] == 6
    assert speed["total_latency_ms"] == pytest.approx(1000 * seconds)
    assert speed["system_output_throughput_tok_s"] == pytest.approx(tokens / seconds)
    assert speed["system_total_throughput_tok_s"] == pytest.approx((tokens + given) / seconds)
    assert speed["request_throughput_req_s"] == pytest.approx(9 / seconds)
    percentiles = speed["request_latency_percentiles_ms"]
    assert percentiles["p50"] == pytest.approx(latencies[4])
    assert percentiles["p99"] == percentiles["p90"] == percentiles["maximum"] == pytest.approx(latencies[-1])
    assert speed["avg_request_latency_ms"] == pytest.approx(statistics.mean(latencies))
    assert streaming["avg_ttft_ms"] == pytest.approx(statistics.mean(r["time_to_first_token"] / 1e6 for r in requests))
    assert streaming["avg_tpot_ms"] == pytest.approx(
        statistics.mean(r["generation_time"] / r["num_generated_tokens"] / 1e6 for r in requests)
    )
    assert (report["dataset"]["max_isl"], report["dataset"]["avg_isl"]) == (9, 6)
    assert len(read(told["folder"], "texts.json")) == 9


def test_requests_that_fail_are_an_error_or_only_missing(told: dict[str, Any], version: str) -> None:
    status = told["benchmark of which a request fails"]

    assert status == (1 if version == "v1_3rc" else 0)
    if status == 0:
        assert read(told["folder"], "failing.json")["request_info"]["num_requests"] == 8


def test_world_info_is_what_the_command_line_asked_for(told: dict[str, Any], version: str) -> None:
    def world_info(name: str) -> list[Any]:
        world = read(told["folder"], f"{name}.json")["world_info"]
        return [world[key] for key in ("tp_size", "world_size", "ep_size", "max_batch_size", "max_num_tokens")]

    assert world_info("plain") == [2, 2, None, 4, 64]
    assert world_info("latency")[3] == 1
    if version != "v1_0":
        assert world_info("overruled") == [1, 1, None, 4, 64]  # though the user's YAML says 2 at a time


def test_path_alone_is_enough_for_the_command(world: World) -> None:
    ended = world.bench("v1_2", *world.throughput())

    assert ended.returncode == 0, ended.stdout + ended.stderr
    for line in (
        r"Total Latency \(ms\): +[\d.]+$",
        r"Per GPU Output Throughput \(tps/gpu\): +[\d.]+$",
        r"Request Throughput \(req/sec\): +[\d.]+$",
        r"Allocated [\d.]+ GiB for max tokens in paged KV cache",
    ):
        assert re.search(line, ended.stdout, re.MULTILINE)
    assert read(world.folder, "report.json")["world_info"]["max_batch_size"] == 128


def test_usage_errors_and_bad_datasets_have_the_exit_status_of_their_kind(world: World) -> None:
    (world.folder / "no-length").write_text('{"task_id": 0, "input_ids": [1, 2]}\n')

    unknown = world.bench("v1_2", *world.throughput("--config", "overruling"))
    existing = world.bench("v1_2", "--model", "source", "throughput", "--dataset", "dataset")
    lacking = world.bench("v1_2", *world.throughput(dataset="no-length"))

    assert unknown.returncode == 2
    assert existing.returncode == 1
    assert "please provide a model name" in existing.stderr
    assert lacking.returncode == 1
    assert "KeyError: 'output_tokens'" in lacking.stdout


def test_an_interrupted_benchmark_ends_as_if_all_were_well_and_writes_nothing(world: World, tmp_path: Path) -> None:
    write_dataset(tmp_path / "long", requests=50, tokens=1000)
    report = tmp_path / "report.json"
    with subprocess.Popen(
        ["trtllm-bench", *world.throughput("--report_json", str(report), dataset=str(tmp_path / "long"))],
        stdout=subprocess.PIPE, text=True, cwd=world.folder, env=world.environment("v1_2"),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if "Starting benchmarking" in line:
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()

    assert process.returncode == 0
    assert "Keyboard interrupt" in rest
    assert not report.exists()


# Faults.


def test_the_readme_names_every_fault(world: World) -> None:
    faults = (DOUBLES / "README.md").read_text(encoding="utf-8").split("## Faults")[1]
    named = re.findall(r"^\| `(\w+)` \|", faults, re.MULTILINE)
    known = world.faults["no such"][1].split("known are ")[1].split(", ")

    assert world.faults["no such"][0] == "ValueError"
    assert sorted(named) == known


@pytest.mark.parametrize(
    ("name", "type_name", "words"),
    [
        ("oom_init", "RuntimeError", "Executor creation failed due to insufficient GPU memory"),
        ("oom_graphs", "OutOfMemoryError", "CUDA out of memory. Tried to allocate"),
        ("worker_died_init", "RuntimeError", "Executor worker died during initialization"),
        ("gpu_count", "RuntimeError", "Only 0 GPUs are available, but 1 are required."),
        ("oom_run", "OutOfMemoryError", "CUDA out of memory. Tried to allocate"),
        ("illegal_memory", "RuntimeError", "CUDA error: an illegal memory access was encountered"),
        ("nccl", "RuntimeError", "NCCL error"),
    ],
)
def test_some_faults_are_exceptions(world: World, name: str, type_name: str, words: str) -> None:
    assert world.faults[name][0] == type_name
    assert words in world.faults[name][1]


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("broken", ["OutOfMemoryError", ["RuntimeError", "LLM is shutting down"]]),
        ("request_error", ["RequestError", 2]),
        ("hang_init", True),
        ("hang_run", True),
        ("hang_shutdown", True),
        ("short_output", [LONGEST - 1, "stop"]),
        ("wrong_config", 1),
        ("wrong_quant", None),
        ("slow_clock", pytest.approx(2.0, rel=1e-3)),
        ("missing_logprob", [PROMPTS[3][11]]),
        ("truncated_logits", len(PROMPTS[3]) - 2),
        ("once, elsewhere", True),
    ],
)
def test_some_faults_are_seen_only_by_who_looks(world: World, name: str, seen: Any) -> None:
    assert world.faults[name] == ["returned", seen]


def test_a_fault_may_be_of_one_process_only(world: World) -> None:
    assert world.faults["once, here"] == "RuntimeError"


@pytest.mark.parametrize(
    "name", ["oom_init", "worker_died_init", "gpu_count", "oom_run", "illegal_memory", "exit_1", "requests_failed"]
)
def test_some_faults_end_a_benchmark(world: World, name: str) -> None:
    assert world.faults[f"benchmark: {name}"] == 1
    assert not (world.faults["folder"] / f"{name}.json").exists()


@pytest.mark.parametrize("name", ["exit_without_report", "sigint"])
def test_some_faults_end_a_benchmark_as_if_all_were_well(world: World, name: str) -> None:
    assert world.faults[f"benchmark: {name}"] == 0
    assert not (world.faults["folder"] / f"{name}.json").exists()


def _throughput(report: dict[str, Any]) -> float:
    tokens = report["request_info"]["num_requests"] * report["request_info"]["avg_output_length"]
    return float(tokens / report["performance"]["total_latency_ms"] * 1000)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("nan", lambda r: r["performance"]["system_output_throughput_tok_s"] != pytest.approx(_throughput(r))),
        ("missing_key", lambda r: "system_output_throughput_tok_s" not in r["performance"]),
        ("wrong_count", lambda r: r["request_info"]["num_requests"] == r["dataset"]["num_requests"] - 1),
        ("wrong_tp", lambda r: r["world_info"]["tp_size"] == 2),
        ("wrong_batch", lambda r: r["world_info"]["max_batch_size"] == 5),
        ("wrong_quant", lambda r: r["engine"]["quantization"] is None),
        ("wrong_version", lambda r: r["engine"]["version"] == "1.3.0rc12.post1"),
        ("short_output", lambda r: r["request_info"]["avg_output_length"] == 5),
        (
            "inconsistent",
            lambda r: r["performance"]["system_output_throughput_tok_s"] == pytest.approx(2 * _throughput(r)),
        ),
    ],
)
def test_some_faults_are_in_the_report(world: World, name: str, wrong: Callable[[dict[str, Any]], bool]) -> None:
    assert world.faults[f"benchmark: {name}"] == 0
    assert wrong(read(world.faults["folder"], f"{name}.json"))


def test_a_report_may_be_cut_and_requests_out_of_order(world: World) -> None:
    with pytest.raises(json.JSONDecodeError):
        read(world.faults["folder"], "truncated_report.json")
    first = read(world.faults["folder"], "bad_request_json.requests.json")[0]

    assert first["end_timestamp"] < first["start_timestamp"]


def test_a_benchmark_may_be_killed(world: World) -> None:
    ended = world.bench("v1_2", *world.throughput(), TRTLLM_DOUBLE_FAULT="worker_killed")

    assert ended.returncode == -signal.SIGKILL


def test_a_benchmark_may_write_its_report_and_not_end(world: World, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with subprocess.Popen(
        ["trtllm-bench", *world.throughput("--report_json", str(report))],
        stdout=subprocess.DEVNULL, cwd=world.folder,
        env=world.environment("v1_2", TRTLLM_DOUBLE_FAULT="hang_exit"),
    ) as process:  # fmt: skip
        until = time.monotonic() + PATIENCE
        while not report.exists() and time.monotonic() < until:
            time.sleep(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.kill()

    assert json.loads(report.read_text())["request_info"]["num_requests"] == 9
