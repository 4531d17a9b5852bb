"""The network of a checkpoint on one CPU thread: scores of tokens after prompts, and after one token more.

It is the reference engine's; what TensorRT-LLM spreads over GPUs is computed here by one rank.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]
if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))

import torch

from pytest_llamaperf.children.torch_llama.cut import cut_for
from pytest_llamaperf.children.torch_llama.network import Network
from pytest_llamaperf.children.torch_llama.weights import CheckpointWeights

CACHE_BYTES = 512 << 20  # zeroed when it is made, which takes a second
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Computation:
    """`slots` are as many of those asked for as fit; every slot holds `positions` tokens."""

    def __init__(self, folder: Path, dtype: str, *, slots: int, positions: int, fp8_cache: bool) -> None:
        torch.set_num_threads(1)
        cpu = torch.device("cpu")
        weights = CheckpointWeights(folder, DTYPES[dtype], cpu)
        _set_cache_type(weights, fp8_cache)
        shape = weights.shape
        slot_bytes = 2 * shape.layers * shape.kv_heads * positions * shape.head_dim * (4 if dtype == "float32" else 2)
        self.slots, self.positions = min(slots, max(1, CACHE_BYTES // slot_bytes)), positions
        self.cache_bytes, self.vocabulary = self.slots * slot_bytes, shape.vocabulary
        with torch.inference_mode():
            self._network = Network(
                weights,
                cut_for(shape, 0, 1, 1),
                slots=self.slots,
                positions=positions,
                dtype=DTYPES[dtype],
                device=cpu,
                tensor_group=None,
                report=lambda done, total: None,
            )
        weights.close()

    def prompts(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> list[torch.Tensor]:
        """Prompts into their slots; for each the hidden states [T, hidden] after its tokens."""
        tokens = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        x = self._network.prompts(self._network.embedded(tokens), torch.tensor(slots))
        return [x[row, : len(prompt)] for row, prompt in enumerate(prompts)]

    def decode(self, places: Mapping[int, tuple[int, int]]) -> dict[int, torch.Tensor]:
        """Slot -> (token, position) become slot -> hidden state [hidden].

        Empty slots up to the last one are carried along; what is written there is overwritten by the next prompt.
        """
        everyone = [places.get(slot, (0, 0)) for slot in range(max(places) + 1)]
        tokens, positions = (torch.tensor(column) for column in zip(*everyone, strict=True))
        x = self._network.embedded(tokens[:, None])
        x = self._network.decode(x, 0, positions, int(positions.max()) + 1)
        return {slot: x[slot, 0] for slot in places}

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, vocabulary] in FP32 of hidden states [N, hidden]."""
        # Network has no public way to them: its own commands never need more than the best one.
        return self._network._scores(x)


def _set_cache_type(weights: Any, fp8: bool) -> None:
    """What hf_quant_config.json or the user say of the cache counts, not config.json; scales that are missing are 1."""
    of_checkpoint = weights.kv_scales

    def scales(layer: int) -> tuple[float, float] | None:
        if not fp8:
            return None
        try:
            return of_checkpoint(layer) or (1.0, 1.0)
        except ValueError:  # there are no such tensors
            return 1.0, 1.0

    weights.kv_scales = scales
