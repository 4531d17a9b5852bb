"""One step of a pipeline of stages: hidden states go forward, chosen tokens go back to the first stage.

Every rank makes the same steps in the same order, so that nobody has to be told what comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from .network import Network


@dataclass(frozen=True)
class PromptStep:
    """Prompts [B, T], padded at their ends, into slots; the token after each prompt's last one is chosen."""

    tokens: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor


@dataclass(frozen=True)
class DecodeStep:
    """The next token for the slots from `start`; tokens and positions [B], all positions below `length`."""

    tokens: torch.Tensor
    positions: torch.Tensor
    start: int
    length: int


@dataclass(frozen=True)
class JudgeStep:
    """How likely `targets` [N] are after the places `at` [N] of sequences [B, T], which are counted row by row.

    `noise` disturbs what is embedded.
    """

    tokens: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor
    noise: float = 0.0


class Stage:
    """This rank's network with its neighbours. `forward` and `back` are groups of their own: NCCL orders what goes
    through one group, and a send that waits for its receiver would hold up what goes the other way.
    """

    def __init__(
        self,
        network: Network,
        forward: dist.ProcessGroup | None = None,
        back: dist.ProcessGroup | None = None,
        decode: Callable[[torch.Tensor, int, torch.Tensor, int], torch.Tensor] | None = None,
    ) -> None:
        """`decode` is another way to do what network.decode does."""
        self.network = network
        self._forward, self._back = forward, back
        self._decode = decode or network.decode
        cut = network.cut
        self._before, self._after = [((cut.pp_rank + step) * cut.tp + cut.tp_rank) for step in (-1, 1)]
        self._first, self._last = cut.tp_rank, (cut.pp - 1) * cut.tp + cut.tp_rank
        self._others = range(self._first, self._last, cut.tp)  # the stages before the last one
        self._sent: deque[tuple[dist.Work, torch.Tensor]] = deque()

    @property
    def starts(self) -> bool:
        return self.network.cut.first

    def choose(self, step: PromptStep | DecodeStep, told: bool = False) -> torch.Tensor | None:
        """Do this rank's part of a step. The chosen tokens [B] if this rank knows them already; see `chosen`.

        They are sent to the first stage, which goes on from them, and to every stage that is to be `told`.
        """
        network = self.network
        x = self._entering(step.tokens if isinstance(step, PromptStep) else step.tokens[:, None])
        if isinstance(step, PromptStep):
            x = network.prompts(x, step.slots)
        else:
            x = self._decode(x, step.start, step.positions, step.length)
        if not network.cut.last:
            self._send(x, self._after, self._forward)
            return None
        at = step.lengths - 1 if isinstance(step, PromptStep) else torch.zeros_like(step.positions)
        tokens = network.chosen(x[torch.arange(len(at), device=x.device), at]).cpu()
        for rank in self._others[: len(self._others) if told else 1]:
            self._send(tokens, rank, self._back)
        return tokens

    def chosen(
        self, step: PromptStep | DecodeStep, tokens: torch.Tensor | None, told: bool = False
    ) -> torch.Tensor | None:
        """The tokens of a step made before, waiting for them: on the first stage, and where told; elsewhere None."""
        if not (self.starts or told):
            return None
        return tokens if tokens is not None else self._received(self._last, len(step.tokens), self._back)

    def judge(self, step: JudgeStep) -> torch.Tensor | None:
        """[2, N]: log-probabilities of the targets, and the most likely tokens there; on the first stage, else None."""
        return self._asked(
            step, 2, lambda x, targets: torch.stack([part.double() for part in self.network.judged(x, targets)])
        )

    def expect(self, step: JudgeStep, top: int) -> torch.Tensor | None:
        """[1 + 2 * top, N] as `network.expected` gives it, on the first stage, else None."""
        return self._asked(step, 1 + 2 * top, lambda x, targets: self.network.expected(x, targets, top))

    def _asked(
        self, step: JudgeStep, rows: int, head: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor | None:
        """What `head` finds of hidden states [N, hidden] and the targets, [rows, N]."""
        network = self.network
        x = self._entering(step.tokens, step.noise)
        x = network.prompts(x, None)
        found: torch.Tensor | None = None
        if network.cut.last:
            # Only what is asked about goes through the head, which is a fifth of a small network.
            asked = x.flatten(0, 1)[step.at.to(x.device)]
            # In pieces: the scores of a whole batch over a vocabulary of 128,256 are half a megabyte a token.
            pieces = [
                head(states, tokens)
                for states, tokens in zip(torch.split(asked, 256), torch.split(step.targets, 256), strict=True)
            ]
            found = torch.cat(pieces, dim=1).cpu()
            if not network.cut.first:
                self._send(found, self._first, self._back)
        else:
            self._send(x, self._after, self._forward)
        if not self.starts:
            return None
        if found is None:
            found = torch.empty(rows, len(step.targets), dtype=torch.double)
            dist.recv(found, self._last, group=self._back)
        return found

    def settle(self) -> None:
        """Wait until everything sent has arrived."""
        while self._sent:
            self._sent.popleft()[0].wait()

    def _entering(self, tokens: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
        """Hidden states [B, T, hidden] into this stage."""
        network = self.network
        if network.cut.first:
            x = network.embedded(tokens.to(network.device))
            if noise:
                drawn = torch.Generator(network.device).manual_seed(0)
                x = (x.float() * (1 + noise * torch.empty_like(x, dtype=torch.float32).normal_(generator=drawn))).to(
                    x.dtype
                )
            return x
        x = torch.empty(*tokens.shape, network.shape.hidden, dtype=network.dtype, device=network.device)
        dist.recv(x, self._before, group=self._forward)
        return x

    def _received(self, source: int, size: int, group: dist.ProcessGroup | None) -> torch.Tensor:
        tokens = torch.empty(size, dtype=torch.long)
        dist.recv(tokens, source, group=group)
        return tokens

    def _send(self, x: torch.Tensor, to: int, group: dist.ProcessGroup | None) -> None:
        work = dist.isend(x.contiguous(), to, group=group)
        assert work is not None
        self._sent.append((work, x))
        while len(self._sent) > 4:
            self._sent.popleft()[0].wait()
