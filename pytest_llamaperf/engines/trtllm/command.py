"""trtllm-bench for a case: a list of words, chosen by what its help says it takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packaging.version import Version

from pytest_llamaperf.cases import Workload
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.engines.trtllm.arguments import STREAM_INTERVAL, cuda_graphs
from pytest_llamaperf.errors import Unsupported

WARMUP = 2  # requests, as trtllm-bench has it; more of them warm nothing up that these do not

# One request at a time is what its command `latency` is for; everything else is `throughput`.
LATENCY, THROUGHPUT = "latency", "throughput"


@dataclass(frozen=True)
class Takes:
    """Options that trtllm-bench takes: of itself, and of one of its commands."""

    group: frozenset[str]
    options: frozenset[str]

    @classmethod
    def of_help(cls, group: str, command: str) -> Takes:
        """By the text of `--help`."""
        return cls(_options_in(group), _options_in(command))

    def one_of(self, *spellings: str) -> str:
        """The first that is taken. Raises Unsupported for none."""
        for spelling in spellings:
            if spelling in self.options:
                return spelling
        raise Unsupported(f"this trtllm-bench takes none of {', '.join(spellings)}, which the measurement needs")


def _options_in(text: str) -> frozenset[str]:
    """Those that a line begins with, all spellings: `--config, --extra_llm_api_options TEXT`, `--this / --not_this`.

    What the explanations beside them mention is no option of this command. They stand further to the right.
    """
    declared = re.findall(r"^ {1,8}(-[\w-]+(?:(?:, | / )-[\w-]+)*)", text, re.MULTILINE)
    return frozenset(re.findall(r"--[\w-]+", " ".join(declared)))


# What 1.2 takes; later versions take that too.
OF_1_2 = Takes(
    group=frozenset({"--model", "--model_path", "--workspace"}),
    options=frozenset({
        "--dataset", "--backend", "--tp", "--pp", "--max_batch_size", "--max_num_tokens", "--max_seq_len",
        "--kv_cache_free_gpu_mem_fraction", "--num_requests", "--concurrency", "--warmup", "--streaming",
        "--report_json", "--request_json", "--extra_llm_api_options", "--enable_chunked_context",
        "--disable_chunked_context",
    }),
)  # fmt: skip


def known(version: Version, kind: str) -> Takes:
    """What a command of a version takes, as far as it is said here: for plans, and where nobody asked trtllm-bench."""
    missing = {"--disable_chunked_context"} if version < Version("1.1.0rc0") else set()
    if missing and kind == LATENCY:
        missing.add("--extra_llm_api_options")
    return Takes(OF_1_2.group, OF_1_2.options - missing)


@dataclass(frozen=True)
class Paths:
    """Files of one command: what it reads, and what it writes (`report`, `requests`) under `workspace`."""

    checkpoint: str
    dataset: str
    options: str
    workspace: str
    report: str
    requests: str


def kind_of(workload: Workload) -> str:
    """The command of trtllm-bench. Raises Unsupported for arrivals it cannot make."""
    if workload.arrival_rate is not None:
        raise Unsupported(f"{workload}: trtllm-bench has no open loop; use --engine tensorrt-llm")
    return LATENCY if workload.concurrency == 1 else THROUGHPUT


def words(spec: EngineSpec, workload: Workload, paths: Paths, takes: Takes) -> list[str]:
    """The command line. Raises Unsupported for what this trtllm-bench cannot be told, and a case needs."""
    if spec.layout.dp > 1:
        raise Unsupported(f"{spec}: trtllm-bench serves no copies side by side; measure {spec.layout} without dp")
    kind = kind_of(workload)
    limits = spec.limits
    needed: dict[str, str] = {
        "--dataset": paths.dataset,
        "--backend": "pytorch",
        "--tp": str(spec.layout.tp),
        "--pp": str(spec.layout.pp),
        "--kv_cache_free_gpu_mem_fraction": f"{limits.kv_fraction:g}",
        "--num_requests": str(workload.requests),
        "--concurrency": str(workload.concurrency or -1),
        "--warmup": str(WARMUP),
        "--report_json": paths.report,
    }
    if kind == THROUGHPUT:
        needed |= {
            "--max_batch_size": str(limits.max_batch_size),
            "--max_num_tokens": str(limits.max_num_tokens),
            "--max_seq_len": str(limits.max_seq_len or spec.model.context),
            "--request_json": paths.requests,
        }
    line = ["trtllm-bench", "--model", spec.model.name, "--model_path", paths.checkpoint]
    line += ["--workspace", paths.workspace]
    line += ["--no-telemetry"] if "--no-telemetry" in takes.group else []
    line.append(kind)
    for name, value in needed.items():
        line += [takes.one_of(name), value]
    if kind == THROUGHPUT:
        line += [takes.one_of("--streaming"), *_chunking(limits.chunked_prefill, takes)]
    if told_in_a_file(kind, takes):
        line += [takes.one_of("--extra_llm_api_options", "--config"), paths.options]
    return line


def told_in_a_file(kind: str, takes: Takes) -> bool:
    """Whether `options` can be said: `latency` of 1.0 takes no file, and serves one request with graphs of its own."""
    return kind == THROUGHPUT or bool(takes.options & {"--extra_llm_api_options", "--config"})


def options(spec: EngineSpec, kind: str) -> Mapping[str, object]:
    """What trtllm-bench is told in a file, having no options for it. What stands there wins over everything else."""
    graphs = {"batch_sizes": [1], "enable_padding": True} if kind == LATENCY else cuda_graphs(spec)
    return {"cuda_graph_config": graphs, "stream_interval": STREAM_INTERVAL}


def _chunking(wanted: bool, takes: Takes) -> Sequence[str]:
    """Off by default where it cannot be switched off, on where it can: so it is said wherever that can be said."""
    if wanted:
        return [takes.one_of("--enable_chunked_context")]
    return ["--disable_chunked_context"] if "--disable_chunked_context" in takes.options else []
