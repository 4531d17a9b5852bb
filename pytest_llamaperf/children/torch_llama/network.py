"""One rank's part of a Llama: its layers, and its share of heads, feed-forward columns and vocabulary in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .cut import Cut
from .kv_cache import KvCache
from .linears import Linear, blocked, joined, laid_out, product
from .rotary import Rotary, rotated
from .weights import Weights


@dataclass(frozen=True)
class Layer:
    """`query_key_value` and `gate_up` are cut by outputs, `output` and `down` by inputs: one sum over ranks each."""

    attention_norm: torch.Tensor
    query_key_value: Linear
    output: Linear
    feed_forward_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class Network:
    """What one rank computes. A stage hands hidden states [B, T, hidden] to the next; the last one chooses tokens."""

    def __init__(
        self,
        weights: Weights,
        cut: Cut,
        *,
        slots: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device,
        tensor_group: dist.ProcessGroup | None,
        report: Callable[[int, int], None],
    ) -> None:
        """Loads the rank's tensors; `report(done, total)` after each layer."""
        shape = self.shape = weights.shape
        self.cut, self.dtype, self.device = cut, dtype, device
        self._group = tensor_group
        self._heads = cut.heads[1] - cut.heads[0]
        self._kv_heads = cut.kv_heads[1] - cut.kv_heads[0]
        self._layers = []
        for done, number in enumerate(range(*cut.layers)):
            self._layers.append(_layer(weights, cut, number))
            report(done + 1, cut.layers[1] - cut.layers[0])
        if cut.first:
            self._embedding = weights.embedding()
        if cut.last:
            self._head = blocked(weights.head(cut.vocabulary))
            self._norm = weights.norm("model.norm")
        scales = [weights.kv_scales(number) for number in range(*cut.layers)]
        self._rotary = Rotary(shape, positions, device, dtype)
        self.cache = KvCache(
            len(self._layers), slots, self._kv_heads, positions, shape.head_dim, dtype, device,
            scales=[scale for scale in scales if scale is not None] or None,
        )  # fmt: skip

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, T] -> hidden states, on the first stage."""
        return F.embedding(tokens, self._embedding)

    def prompts(self, x: torch.Tensor, slots: torch.Tensor | None) -> torch.Tensor:
        """Whole prompts from position 0, padded at their ends, into `slots` [B], or into none to be forgotten."""
        positions = torch.arange(x.shape[1], device=self.device)[None].expand(x.shape[0], -1)
        slots = None if slots is None else slots.to(self.device)
        cos, sin = self._rotary.at(positions)

        def attention(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if slots is not None:
                self.cache.write(layer, slots[:, None], positions, k, v)
            k, v = self.cache.rounded(layer, k, v)
            y = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
            )
            return y.transpose(1, 2)

        return self._through(x, cos, sin, attention)

    def decode(self, x: torch.Tensor, start: int, positions: torch.Tensor, length: int) -> torch.Tensor:
        """One token for each of the slots from `start`, x [B, 1, hidden] at `positions` [B], all below `length`."""
        rows = torch.arange(start, start + x.shape[0], device=self.device)[:, None]
        positions = positions.to(self.device)
        cos, sin = self._rotary.at(positions[:, None])
        seen = torch.arange(length, device=self.device) <= positions[:, None]
        mask = seen[:, None, None, :]

        def attention(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.cache.write(layer, rows, positions[:, None], k, v)
            keys, values = self.cache.read(layer, start, start + x.shape[0], length)
            # The query heads of a KV head stand where positions would: no key is copied for them.
            grouped = q.view(x.shape[0], self._kv_heads, -1, self.shape.head_dim)
            return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)

        return self._through(x, cos, sin, attention)

    def chosen(self, x: torch.Tensor) -> torch.Tensor:
        """The most likely next token for each of x [B, hidden], on the last stage; the same on all of its ranks."""
        scores = self._scores(x)
        best, index = scores.max(-1)
        if self._group is None:
            return index
        pairs = self._gathered(torch.stack((best.double(), (index + self.cut.vocabulary[0]).double())))
        winner = pairs[:, 0].argmax(0, keepdim=True)
        return pairs[:, 1].gather(0, winner)[0].long()

    def judged(self, x: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probability of each target, most likely token), for x [N, hidden] and targets [N], on the last stage."""
        scores = self._scores(x)
        target = self._own(scores, targets)
        if self._group is None:
            return target - scores.logsumexp(-1), scores.argmax(-1)
        parts = self._gathered(torch.stack((target, scores.logsumexp(-1))))
        return parts[:, 0].amax(0) - parts[:, 1].logsumexp(0), self.chosen(x)

    def expected(self, x: torch.Tensor, targets: torch.Tensor, top: int) -> torch.Tensor:
        """What is expected after x [N, hidden], on the last stage, as [1 + 2 * top, N] in FP64.

        Log-probabilities of the targets [N] and of the `top` most likely tokens, best first; then those tokens.
        """
        scores = self._scores(x)
        target, total = self._own(scores, targets), scores.logsumexp(-1)
        # A rank with fewer rows than that has nothing to say in the remaining places.
        few = min(top, scores.shape[-1])
        best, tokens = (F.pad(part.double(), (0, top - few), value=-torch.inf) for part in scores.topk(few))
        tokens = tokens + self.cut.vocabulary[0]
        if self._group is not None:
            parts = self._gathered(torch.cat((torch.stack((target, total)).double(), best.T, tokens.T)))
            target, total = parts[:, 0].amax(0), parts[:, 1].logsumexp(0)
            candidates, theirs = (parts[:, rows].flatten(0, 1).T for rows in (slice(2, 2 + top), slice(2 + top, None)))
            best, places = candidates.topk(top)
            tokens = theirs.gather(-1, places)
        return torch.cat((torch.cat((target[:, None], best), dim=1) - total[:, None], tokens), dim=1).T.double()

    def _own(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Scores of the targets [N]; of those that are another rank's, minus infinity."""
        targets = targets.to(self.device)
        own = (targets >= self.cut.vocabulary[0]) & (targets < self.cut.vocabulary[1])
        here = (targets - self.cut.vocabulary[0]).clamp(0, scores.shape[-1] - 1)
        return scores.gather(-1, here[:, None])[:, 0].where(own, torch.tensor(-torch.inf, device=self.device))

    def _scores(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's rows of the vocabulary, [N, rows], in FP32."""
        return product(self._normed(x, self._norm), self._head).float()

    def _through(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attention: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """x through this rank's layers; `attention` gets q, k and v as [B, T, heads, head_dim]."""
        batch, tokens, _ = x.shape
        for number, layer in enumerate(self._layers):
            parts = layer.query_key_value(self._normed(x, layer.attention_norm))
            parts = parts.view(batch, tokens, -1, self.shape.head_dim)
            q, k, v = torch.split(parts, [self._heads, self._kv_heads, self._kv_heads], dim=2)
            y = attention(number, rotated(q, cos, sin), rotated(k, cos, sin), v)
            x = x + self._summed(layer.output(y.reshape(batch, tokens, -1)))
            gate, up = layer.gate_up(self._normed(x, layer.feed_forward_norm)).chunk(2, dim=-1)
            x = x + self._summed(layer.down(F.silu(gate) * up))
        return x

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.shape.eps)

    def _summed(self, x: torch.Tensor) -> torch.Tensor:
        """Over the ranks of a stage, in FP32, so that more ranks add no rounding of their own."""
        if self._group is None:
            return x
        total = x.float()
        dist.all_reduce(total, group=self._group)
        return total.to(x.dtype)

    def _gathered(self, x: torch.Tensor) -> torch.Tensor:
        """x of all ranks of the stage, stacked in their order."""
        parts = [torch.empty_like(x) for _ in range(self.cut.tp)]
        dist.all_gather(parts, x, group=self._group)
        return torch.stack(parts)


def _layer(weights: Weights, cut: Cut, number: int) -> Layer:
    name = f"model.layers.{number}"
    size = weights.shape.head_dim
    heads = (cut.heads[0] * size, cut.heads[1] * size)
    kv = (cut.kv_heads[0] * size, cut.kv_heads[1] * size)
    return Layer(
        weights.norm(f"{name}.input_layernorm"),
        laid_out(
            joined(
                [
                    weights.linear(f"{name}.self_attn.q_proj", rows=heads),
                    weights.linear(f"{name}.self_attn.k_proj", rows=kv),
                    weights.linear(f"{name}.self_attn.v_proj", rows=kv),
                ]
            )
        ),
        laid_out(weights.linear(f"{name}.self_attn.o_proj", columns=heads)),
        weights.norm(f"{name}.post_attention_layernorm"),
        laid_out(
            joined(
                [
                    weights.linear(f"{name}.mlp.gate_proj", rows=cut.feed_forward),
                    weights.linear(f"{name}.mlp.up_proj", rows=cut.feed_forward),
                ]
            )
        ),
        laid_out(weights.linear(f"{name}.mlp.down_proj", columns=cut.feed_forward)),
    )
