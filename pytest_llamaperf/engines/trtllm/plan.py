"""What TensorRT-LLM would be given for cases, on paper: for whoever reviews a suite before it takes eight GPUs."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import yaml
from packaging.version import Version

from pytest_llamaperf.cases import Case, Workload
from pytest_llamaperf.engines import EngineSpec
from pytest_llamaperf.engines.trtllm import command, contract, inputs, reproducing
from pytest_llamaperf.engines.trtllm.arguments import said, wanted
from pytest_llamaperf.engines.trtllm.nodes import found_nodes
from pytest_llamaperf.engines.trtllm.opening import Quantization, refuse_what_cannot_be
from pytest_llamaperf.errors import Unsupported
from pytest_llamaperf.wording import counted

CHECKPOINT = "$CHECKPOINT"


def planned(cases: Sequence[Case]) -> Iterator[str]:
    """Lines of text: for each engine that would be opened its arguments, and for each of its workloads the command.

    For the TensorRT-LLM that is installed here, or by what is known of PLANNED_FOR.
    """
    version, where = version_here()
    specs: dict[EngineSpec, list[Case]] = {}
    for case in cases:
        specs.setdefault(EngineSpec.of(case), []).append(case)
    yield f"plan for TensorRT-LLM {version} ({where}): {counted(len(specs), 'engine')}, {counted(len(cases), 'case')}"
    for spec, served in specs.items():
        yield ""
        yield from _engine(spec, served, version)


def version_here() -> tuple[Version, str]:
    """The TensorRT-LLM that is installed, else the one that plans are made for, and in words which of both.

    Raises EngineError for an installation of no use.
    """
    try:
        return contract.version_of(installed_version("tensorrt_llm")), "installed here"
    except PackageNotFoundError:
        return contract.PLANNED_FOR, "none is installed here: by docs/tensorrt-llm.md"


def _engine(spec: EngineSpec, cases: Sequence[Case], version: Version) -> Iterator[str]:
    nodes = found_nodes()
    yield str(spec)
    try:
        refuse_what_cannot_be(spec, nodes)
        arguments, notes = said(wanted(spec, CHECKPOINT, nodes), lambda path: contract.known_at(version, path))
    except Unsupported as problem:
        yield f"  not supported: {problem}"
        return
    quantization = Quantization.of(spec)
    yield (
        f"  {CHECKPOINT}: {spec.model} in the recipe {spec.recipe}; "
        f"quant_algo {quantization.weights}, kv_cache_quant_algo {quantization.kv_cache}"
    )
    yield from (f"  note: {note}" for note in notes)
    if spec.kind == "tensorrt-llm":
        given = [
            f"    {name}={_call(name, value) if isinstance(value, dict) else repr(value)},"
            for name, value in arguments.items()
        ]
        yield from ("  LLM(", *given, "  )")
    for case in cases:
        yield from _work(spec, case, version)


def _call(name: str, fields: dict[str, object]) -> str:
    kind = {"kv_cache_config": "KvCacheConfig", "cuda_graph_config": "CudaGraphConfig"}[name]
    return f"{kind}({', '.join(f'{field}={value!r}' for field, value in fields.items())})"


def _work(spec: EngineSpec, case: Case, version: Version) -> Iterator[str]:
    if not isinstance(case.work, Workload):
        yield f"  {case.work}: greedy answers and log-likelihoods of given tokens"
        return
    yield f"  {case.work}: {counted(case.work.requests, 'request')}"
    if spec.kind == "tensorrt-llm":
        yield (
            f"    generate_async(streaming=True), SamplingParams(max_tokens={case.work.osl}, ignore_eos=True, "
            "temperature=0.0, detokenize=False)"
            if case.work.lengths == "constant"
            else "    generate_async(streaming=True), SamplingParams(ignore_eos=True, temperature=0.0, detokenize=False)"
        )
        yield "    by hand:"
    line = reproducing.line(spec, case.work, CHECKPOINT, found_nodes(), lambda kind: command.known(version, kind))
    if line is None:
        yield "    no command of trtllm-bench does this"
        return
    yield from (f"    {part}" for part in _wrapped(line))
    options = command.options(spec, command.kind_of(case.work))
    yield f"    where {inputs.options_path(options)} is"
    yield textwrap.indent(
        yaml.safe_dump(dict(options), sort_keys=False, default_flow_style=None, width=100).rstrip(), " " * 6
    )


def _wrapped(line: str) -> Iterator[str]:
    """For a shell, an option a line."""
    parts: list[str] = []
    for word in shlex.split(line):
        # In single quotes it would be a folder of that name.
        said = f'"{CHECKPOINT}"' if word == CHECKPOINT else shlex.quote(word)
        if parts and not word.startswith("--"):
            parts[-1] += f" {said}"
        else:
            parts.append(f"  {said}" if parts else said)
    yield from (f"{part} \\" for part in parts[:-1])
    yield parts[-1]
