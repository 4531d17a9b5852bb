"""One rank: loads its part of the network and answers commands, in step with the other ranks."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import random
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .batching import Batcher, Request
from .cut import cut_for
from .graphs import GraphedDecode
from .network import Network
from .stages import JudgeStep, Stage
from .weights import CheckpointWeights, RandomWeights, Weights, shape_of_config

Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an engine is opened with. `checkpoint` is a folder, or None for weights drawn in `config`'s shape.

    slots and most_prompt_tokens are of one pipeline stage; `threads` are CPU threads of a rank.
    """

    checkpoint: str | None
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    tp: int
    pp: int
    slots: int
    positions: int
    most_prompt_tokens: int
    device: str
    threads: int
    seed: int = 0

    @property
    def ranks(self) -> int:
        return self.tp * self.pp


class Rank:
    """Commands are methods; every rank is given the same ones, and rank 0 knows the answers."""

    def __init__(self, settings: Settings, rank: int, rendezvous: Path, report: Report) -> None:
        torch.set_num_threads(settings.threads)
        torch.set_grad_enabled(False)
        self._settings, self._rank = settings, rank
        self.device = torch.device("cpu")
        if settings.device == "cuda":
            self.device = torch.device("cuda", rank)
            torch.cuda.set_device(self.device)
        dtype = torch.float32 if settings.recipe["attention"] == "fp32" else torch.bfloat16
        weights = _weights(settings, dtype, self.device)
        cut = cut_for(weights.shape, rank, settings.tp, settings.pp)
        tensor, forward, back = _groups(settings, rank, rendezvous, self.device)
        network = Network(
            weights,
            cut,
            slots=settings.slots * settings.pp,
            positions=settings.positions,
            dtype=dtype,
            device=self.device,
            tensor_group=tensor,
            report=lambda done, total: report(f"layers of rank {rank}", done, total),
        )
        weights.close()
        self._vocabulary = weights.shape.vocabulary
        graphed = GraphedDecode(network, settings.slots) if self.device.type == "cuda" else None
        self._stage = Stage(network, forward, back, graphed)
        self._batcher = Batcher(self._stage, slots=settings.slots, most_tokens=settings.most_prompt_tokens)
        self._prompts = _drawn(weights.shape.vocabulary)

    def loaded(self) -> dict[str, Any]:
        """What was opened, as it is: versions as loaded, settings in effect."""
        versions = {"torch": str(torch.__version__)}
        if self._settings.device == "cuda":
            versions["cuda"] = str(torch.version.cuda)
            versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        if self._settings.checkpoint:
            versions["safetensors"] = importlib.metadata.version("safetensors")
        return {"versions": versions, "threads": torch.get_num_threads()}

    def run(self, lengths: Sequence[tuple[int, int]], concurrency: int | None) -> dict[str, Any]:
        """Answer prompts drawn at random, the same in every run. Traces as [submitted, first, last, in, out]."""
        requests = [Request(self._prompts(number, isl), osl) for number, (isl, osl) in enumerate(lengths)]
        self._batcher.run(requests, concurrency)
        traces = [[r.submitted, r.first_token, r.last_token, len(r.prompt), len(r.tokens)] for r in requests]
        return {"traces": traces, "peak_memory": self._peak_memory()}

    def generate(self, prompts: Sequence[list[int]], tokens: int, concurrency: int | None) -> list[list[int]]:
        """The `tokens` most likely tokens after each prompt."""
        self._check(prompts)
        requests = [Request(list(prompt), tokens) for prompt in prompts]
        self._batcher.run(requests, concurrency)
        return [request.tokens for request in requests]

    @torch.inference_mode()
    def score(self, sequences: Sequence[list[int]], noise: float, tails: Sequence[int] | None = None) -> dict[str, Any]:
        """For each sequence, of every token after the first: log-probability, and the token most likely there.

        With `tails` of so many tokens at the end of each sequence only. Raises ValueError for a tail that is too long.
        """
        self._check(sequences)
        for number, tail in enumerate(tails or ()):
            if not 1 <= tail < len(sequences[number]):
                raise ValueError(f"sequence {number} has {len(sequences[number])} tokens, and no tail of {tail}")
        logprobs: list[list[float]] = [[] for _ in sequences]
        likely: list[list[int]] = [[] for _ in sequences]
        for batch, tokens in self._batches(sequences):
            wanted = torch.zeros(len(batch), tokens.shape[1] - 1, dtype=torch.bool)
            places = []
            for row, number in enumerate(batch):
                size = len(sequences[number]) - 1
                places.append(slice(0 if tails is None else size - tails[number], size))
                wanted[row, places[row]] = True
            found = self._stage.judge(JudgeStep(tokens, noise, wanted))
            if found is None:
                continue
            for row, number in enumerate(batch):
                logprobs[number] = found[0][row, places[row]].tolist()
                likely[number] = found[1][row, places[row]].tolist()
        self._stage.settle()
        return {"logprobs": logprobs, "likely": likely}

    @torch.inference_mode()
    def distributions(self, sequences: Sequence[list[int]], top: int, noise: float = 0.0) -> list[dict[str, Any]]:
        """For each sequence, of every token after the first: its log-probability, the `top` most likely tokens and theirs.

        Raises ValueError for more tokens than there are.
        """
        self._check(sequences)
        if not 1 <= top <= self._vocabulary:
            raise ValueError(f"{top} of {self._vocabulary} tokens cannot be the most likely ones")
        answers: list[dict[str, Any]] = [{} for _ in sequences]
        for batch, tokens in self._batches(sequences):
            sizes = [len(sequences[number]) - 1 for number in batch]
            wanted = torch.arange(tokens.shape[1] - 1) < torch.tensor(sizes)[:, None]
            found = self._stage.expect(JudgeStep(tokens, noise, wanted), top)
            if found is None:
                continue
            for row, (number, size) in enumerate(zip(batch, sizes, strict=True)):
                own, best, likely = torch.split(found[:, row, :size], [1, top, top])
                answers[number] = {
                    "logprobs": own[0].tolist(), "tokens": likely.T.long().tolist(), "token_logprobs": best.T.tolist()
                }  # fmt: skip
        self._stage.settle()
        return answers

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def _batches(self, sequences: Sequence[list[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Numbers of sequences that fit into one step, the longest first, and their tokens [B, T], padded at the ends."""
        longest_first = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        while longest_first:
            most = max(1, self._settings.most_prompt_tokens // len(sequences[longest_first[0]]))
            batch, longest_first = longest_first[:most], longest_first[most:]
            tokens = torch.zeros(len(batch), max(2, len(sequences[batch[0]])), dtype=torch.long)
            for row, number in enumerate(batch):
                tokens[row, : len(sequences[number])] = torch.tensor(sequences[number])
            yield batch, tokens

    def _check(self, sequences: Sequence[list[int]]) -> None:
        """Refuse what would be cut or would read beyond the vocabulary. Raises ValueError."""
        for number, sequence in enumerate(sequences):
            if not sequence or len(sequence) > self._settings.positions:
                raise ValueError(
                    f"sequence {number} has {len(sequence)} tokens; from 1 to {self._settings.positions} fit"
                )
            if not all(0 <= token < self._vocabulary for token in sequence):
                raise ValueError(f"sequence {number} has a token outside the vocabulary of {self._vocabulary}")

    def _peak_memory(self) -> int:
        """Bytes: of the GPU as the allocator reserved them, or of this process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _weights(settings: Settings, dtype: torch.dtype, device: torch.device) -> Weights:
    if settings.checkpoint is not None:
        return CheckpointWeights(Path(settings.checkpoint), dtype, device)
    return RandomWeights(shape_of_config(settings.config), settings.recipe, dtype, device, settings.seed)


def _groups(
    settings: Settings, rank: int, rendezvous: Path, device: torch.device
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """(ranks of my stage, hidden states forward, tokens back); None where there is nobody to talk to."""
    if settings.ranks == 1:
        return None, None, None
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=rendezvous.as_uri(),
        rank=rank,
        world_size=settings.ranks,
    )
    tensor = None
    if settings.tp > 1:
        stages = [dist.new_group(range(i * settings.tp, (i + 1) * settings.tp)) for i in range(settings.pp)]
        tensor = stages[rank // settings.tp]
    if settings.pp == 1:
        return tensor, None, None
    # Tokens are wanted on the CPU, wherever the network is.
    return tensor, dist.new_group(), dist.new_group(backend="gloo")


def _drawn(vocabulary: int) -> Callable[[int, int], list[int]]:
    """Prompt number n of a length: the same tokens in every run and every layout."""

    def prompt(number: int, length: int) -> list[int]:
        source = random.Random(f"{number} {length}")
        return [source.randrange(vocabulary) for _ in range(length)]

    return prompt
