"""What both engines of TensorRT-LLM need before they start: a case they can run, a runtime they know, a checkpoint it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packaging.version import Version

from pytest_llamaperf.cases import Number
from pytest_llamaperf.checkpoints import BadCheckpoint, Checkpoint, check_rope
from pytest_llamaperf.checkpoints.intended import weight_format
from pytest_llamaperf.engines import EngineSpec, Surroundings
from pytest_llamaperf.engines.hosted import checkpoint_for
from pytest_llamaperf.engines.trtllm import contract
from pytest_llamaperf.engines.trtllm.nodes import Nodes
from pytest_llamaperf.errors import Unsupported
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.phases import Phase

# What runs in the child process: a package of `children/`.
DRIVER = "trtllm"


@dataclass(frozen=True)
class Quantization:
    """What TensorRT-LLM has to call the weights and the KV cache of a recipe; None: as the model was published."""

    weights: str | None
    kv_cache: str | None

    @classmethod
    def of(cls, spec: EngineSpec) -> Quantization:
        number = weight_format(spec.recipe) or Number.BF16
        return cls(contract.QUANTIZATION[number], contract.KV_CACHE[spec.recipe.kv_cache])


def refuse_what_cannot_be(spec: EngineSpec, nodes: Nodes) -> None:
    """Raises Unsupported, before anything starts."""
    if spec.layout.dp > 1:
        raise Unsupported(f"{spec}: one engine serves no copies side by side; measure {spec.layout} without dp")
    if spec.model.random:
        raise Unsupported(f"{spec}: random weights are drawn by the torch engine alone; name a model or a checkpoint")
    if Number.FP32 in (spec.recipe.attention, spec.recipe.feed_forward):
        raise Unsupported(f"{spec}: TensorRT-LLM serves no Llama in FP32; --engine torch does")
    if nodes.launched not in (None, spec.layout.gpus):
        raise Unsupported(f"{spec}: launched for {nodes.launched} GPUs, and {spec.layout} uses {spec.layout.gpus}")


def runtime_version(found: Mapping[str, str], said: str | None) -> Version:
    """The version as loaded, which is the one that is installed. Raises EngineFailure, Unsupported for one too old."""
    installed = found.get("tensorrt_llm")
    if said is None or (installed is not None and contract.version_of(installed) != contract.version_of(said)):
        raise EngineFailure(
            FailureKind.BAD_REPORT,
            Phase.LOAD,
            f"TensorRT-LLM says it is {said or 'without version'}, and {installed or 'no version'} is installed",
        )
    return contract.version_of(said)


def checkpoint_of(spec: EngineSpec, surroundings: Surroundings, versions: Mapping[str, str]) -> Checkpoint:
    """The checkpoint, readable by the runtime. Raises EngineFailure of the kind `checkpoint` for one that is not."""
    try:
        checkpoint = checkpoint_for(spec, surroundings)
        if "transformers" in versions:
            check_rope(checkpoint.path, versions["transformers"])
    except EngineFailure:
        raise
    except BadCheckpoint as problem:
        raise EngineFailure(FailureKind.CHECKPOINT, Phase.LOAD, str(problem)) from None
    if not (checkpoint.path / "tokenizer.json").is_file():
        raise EngineFailure(
            FailureKind.CHECKPOINT, Phase.LOAD, f"{checkpoint.path} has no tokenizer.json; put the model's beside it"
        )
    return checkpoint
