"""Decode steps as CUDA graphs: a step of a small batch is hundreds of kernels that take longer to launch than to run.

A graph is made for a number of slots and a reach of the cache, both rounded up to powers of two, the first time a step
needs it; rounds that warm up make all that a workload needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .network import Network

LEAST_REACH = 256  # positions of the cache; fewer would need many graphs and save nothing


@dataclass(frozen=True)
class _Captured:
    """A graph with the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: torch.Tensor
    positions: torch.Tensor
    out: torch.Tensor


class GraphedDecode:
    """`Network.decode` of one stage on a GPU, replayed. `slots` are those of one group."""

    def __init__(self, network: Network, slots: int) -> None:
        self._network, self._slots = network, slots
        self._captured: dict[tuple[int, int, int], _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, x: torch.Tensor, start: int, positions: torch.Tensor, length: int) -> torch.Tensor:
        """See Network.decode."""
        rows = x.shape[0]
        batch = min(self._slots, _power_of_two(rows))
        reach = min(self._network.cache.positions, max(LEAST_REACH, _power_of_two(length)))
        captured = self._captured.get((start, batch, reach)) or self._capture(start, batch, reach)
        captured.x[:rows].copy_(x)
        # Rows that pad the batch write to slots that are empty, at position 0.
        captured.positions.zero_()
        captured.positions[:rows].copy_(positions)
        captured.graph.replay()
        return captured.out[:rows].clone()  # it may still be on its way to another rank when the graph runs again

    def _capture(self, start: int, batch: int, reach: int) -> _Captured:
        network = self._network
        x = torch.zeros(batch, 1, network.shape.hidden, dtype=network.dtype, device=network.device)
        # Beyond the reach nothing is read: what warming up writes there, the next request of the slot overwrites.
        positions = torch.full((batch,), reach - 1, dtype=torch.long, device=network.device)
        beside = torch.cuda.Stream(network.device)
        beside.wait_stream(torch.cuda.current_stream(network.device))
        with torch.cuda.stream(beside):
            for _ in range(2):  # libraries choose kernels and reserve memory outside of the graph
                network.decode(x, start, positions, reach)
        torch.cuda.current_stream(network.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = network.decode(x, start, positions, reach)
        captured = self._captured[start, batch, reach] = _Captured(graph, x, positions, out)
        return captured


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
