"""One rank: loads its part of the network and answers commands, in step with the other ranks."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import random
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .batching import Batcher, Request
from .cut import cut_for
from .graphs import GraphedDecode
from .network import Network
from .stages import JudgeStep, Stage
from .weights import CheckpointWeights, RandomWeights, Weights, shape_of_config

Report = Callable[[str, int, int], None]

LARGE_STEP = 1024  # tokens, from which on products of more of them are hardly faster each
LITTLE_PADDING = 0.9  # of the longest row, at least
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an engine is opened with. `checkpoint` is a folder, or None for weights drawn in `config`'s shape.

    slots and most_prompt_tokens are of one pipeline stage. CPU threads are of a rank: `threads` where time is taken,
    `answer_threads` where it is not.
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
    answer_threads: int = 1
    seed: int = 0

    @property
    def ranks(self) -> int:
        return self.tp * self.pp


def _not_timed(command: Callable[..., T]) -> Callable[..., T]:
    """A command of a rank for which it uses the threads for answers."""

    @functools.wraps(command)
    def with_more_threads(rank: Rank, *args: Any, **kwargs: Any) -> T:
        torch.set_num_threads(rank.settings.answer_threads)
        try:
            return command(rank, *args, **kwargs)
        finally:
            torch.set_num_threads(rank.settings.threads)

    return with_more_threads


class Rank:
    """Commands are methods; every rank is given the same ones, and rank 0 knows the answers."""

    def __init__(self, settings: Settings, rank: int, rendezvous: Path, report: Report) -> None:
        torch.set_num_threads(settings.threads)
        torch.set_grad_enabled(False)
        self.settings, self._rank = settings, rank
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
        if self.settings.device == "cuda":
            versions["cuda"] = str(torch.version.cuda)
            versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        if self.settings.checkpoint:
            versions["safetensors"] = importlib.metadata.version("safetensors")
        return {"versions": versions, "threads": torch.get_num_threads()}

    def run(self, lengths: Sequence[tuple[int, int]], concurrency: int | None) -> dict[str, Any]:
        """Answer prompts drawn at random, the same in every run. Traces as [submitted, first, last, in, out].

        `dataset` is the SHA-256 of what was asked.
        """
        requests = [Request(self._prompts(number, isl), osl) for number, (isl, osl) in enumerate(lengths)]
        self._batcher.run(requests, concurrency)
        asked = json.dumps([[request.prompt, request.wanted] for request in requests])
        traces = [[r.submitted, r.first_token, r.last_token, len(r.prompt), len(r.tokens)] for r in requests]
        dataset = hashlib.sha256(asked.encode("ascii")).hexdigest()
        return {"traces": traces, "peak_memory": self._peak_memory(), "dataset": dataset}

    @_not_timed
    def generate(
        self, prompts: Sequence[list[int]], tokens: int, concurrency: int | None, stops: Sequence[list[int]] = ()
    ) -> list[list[int]]:
        """The `tokens` most likely tokens after each prompt, or fewer: up to the first of `stops`, and with it."""
        self._check(prompts)
        requests = [Request(list(prompt), tokens) for prompt in prompts]
        self._batcher.run(requests, concurrency, {tuple(stop) for stop in stops})
        return [request.tokens for request in requests]

    @_not_timed
    @torch.inference_mode()
    def score(self, sequences: Sequence[list[int]], noise: float, tails: Sequence[int] | None = None) -> dict[str, Any]:
        """For each sequence, of every token after the first: log-probability, and the token most likely there.

        With `tails` of so many tokens at the end of each sequence only. Raises ValueError for a tail that is too long.
        """
        self._check(sequences)
        for number, tail in enumerate(tails or ()):
            if not 1 <= tail < len(sequences[number]):
                raise ValueError(f"sequence {number} has {len(sequences[number])} tokens, and no tail of {tail}")
        sizes = [len(sequence) - 1 for sequence in sequences] if tails is None else tails
        logprobs: list[list[float]] = [[] for _ in sequences]
        likely: list[list[int]] = [[] for _ in sequences]
        for asked in self._questions(sequences, sizes):
            found = self._stage.judge(asked.step(noise))
            if found is None:
                continue
            for number, part in asked.split(found):
                logprobs[number], likely[number] = part[0].tolist(), part[1].long().tolist()
        self._stage.settle()
        return {"logprobs": logprobs, "likely": likely}

    @_not_timed
    @torch.inference_mode()
    def distributions(self, sequences: Sequence[list[int]], top: int, noise: float = 0.0) -> list[dict[str, Any]]:
        """For each sequence, of every token after the first: its log-probability, the `top` most likely tokens and theirs.

        Raises ValueError for more tokens than there are.
        """
        self._check(sequences)
        if not 1 <= top <= self._vocabulary:
            raise ValueError(f"{top} of {self._vocabulary} tokens cannot be the most likely ones")
        answers: list[dict[str, Any]] = [{} for _ in sequences]
        for asked in self._questions(sequences, [len(sequence) - 1 for sequence in sequences]):
            found = self._stage.expect(asked.step(noise), top)
            if found is None:
                continue
            for number, part in asked.split(found):
                own, best, likely = torch.split(part, [1, top, top])
                answers[number] = {
                    "logprobs": own[0].tolist(), "tokens": likely.T.long().tolist(), "token_logprobs": best.T.tolist()
                }  # fmt: skip
        self._stage.settle()
        return answers

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def _questions(self, sequences: Sequence[list[int]], sizes: Sequence[int]) -> Iterator[_Questions]:
        """About the last `sizes` tokens of each sequence, as many as fit into one step at a time, the longest first.

        What comes later in a row changes nothing before it, so a sequence needs no row of its own where another begins
        with all but its last token: choices of one word after one context share a row, and go along with a longer one.
        """
        askers: dict[tuple[int, ...], list[int]] = {}
        row: tuple[int, ...] = ()
        # In the order of a dictionary, what begins with a context comes right after it: here, from the end, before it.
        for context, number in sorted(((tuple(s[:-1]), n) for n, s in enumerate(sequences)), reverse=True):
            if row[: len(context)] != context or row not in askers:
                row = context
            askers.setdefault(row, []).append(number)
        contexts = sorted(askers, key=len, reverse=True)
        while contexts:
            size = _rows_of_a_step([len(context) for context in contexts], self.settings.most_prompt_tokens)
            batch, contexts = contexts[:size], contexts[size:]
            yield _Questions(batch, [askers[context] for context in batch], sequences, sizes)

    def _check(self, sequences: Sequence[list[int]]) -> None:
        """Refuse what would be cut or would read beyond the vocabulary. Raises ValueError."""
        for number, sequence in enumerate(sequences):
            if not sequence or len(sequence) > self.settings.positions:
                raise ValueError(
                    f"sequence {number} has {len(sequence)} tokens; from 1 to {self.settings.positions} fit"
                )
            if not all(0 <= token < self._vocabulary for token in sequence):
                raise ValueError(f"sequence {number} has a token outside the vocabulary of {self._vocabulary}")

    def _peak_memory(self) -> int:
        """Bytes: of the GPU as the allocator reserved them, or of this process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _rows_of_a_step(lengths: Sequence[int], most_tokens: int) -> int:
    """How many rows of these lengths, the longest first, go into one step: at least one, all padded to the first.

    A step that is large enough ends where rows get much shorter: what pads them costs as much as tokens do.
    """
    width = max(1, lengths[0])
    rows = max(1, min(len(lengths), most_tokens // width))
    shorter = bisect.bisect_right(lengths[:rows], -LITTLE_PADDING * width, key=lambda length: -length)
    return max(min(rows, -(-LARGE_STEP // width)), shorter)


class _Questions:
    """One step's: rows of contexts, and which sequences ask about the last `sizes` tokens of each."""

    def __init__(
        self,
        contexts: Sequence[tuple[int, ...]],
        askers: Sequence[Sequence[int]],
        sequences: Sequence[list[int]],
        sizes: Sequence[int],
    ) -> None:
        width = max(1, len(contexts[0]))
        self._tokens = torch.zeros(len(contexts), width, dtype=torch.long)
        self._sizes = {number: sizes[number] for numbers in askers for number in numbers}
        at: list[int] = []
        targets: list[int] = []
        for row, (context, numbers) in enumerate(zip(contexts, askers, strict=True)):
            self._tokens[row, : len(context)] = torch.tensor(context, dtype=torch.long)
            for number in numbers:
                end = row * width + len(sequences[number]) - 1
                at += range(end - sizes[number], end)
                targets += sequences[number][len(sequences[number]) - sizes[number] :]
        self._at, self._targets = torch.tensor(at, dtype=torch.long), torch.tensor(targets, dtype=torch.long)

    def step(self, noise: float) -> JudgeStep:
        return JudgeStep(self._tokens, self._at, self._targets, noise)

    def split(self, found: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """[rows, N] of all -> (number of a sequence, [rows, its size])."""
        return zip(self._sizes, torch.split(found, list(self._sizes.values()), dim=1), strict=True)


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
