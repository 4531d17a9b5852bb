"""Which part of the network a rank holds: heads, feed-forward columns, vocabulary rows and layers, cut evenly or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A Llama as its config.json describes it. Sizes in numbers, `eps` of the norms."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    eps: float
    rope_theta: float
    rope_scaling: dict[str, float | str]

    @property
    def heads_per_kv(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Cut:
    """The ranges (start, stop) of one rank; `heads` counts query heads, and cuts fall between KV heads."""

    tp_rank: int
    tp: int
    pp_rank: int
    pp: int
    layers: tuple[int, int]
    kv_heads: tuple[int, int]
    heads: tuple[int, int]
    feed_forward: tuple[int, int]
    vocabulary: tuple[int, int]

    @property
    def first(self) -> bool:
        return self.pp_rank == 0

    @property
    def last(self) -> bool:
        return self.pp_rank == self.pp - 1


def cut_for(shape: Shape, rank: int, tp: int, pp: int) -> Cut:
    """The part of `rank`, where the tp ranks of a stage are neighbours.

    A rank's feed-forward columns are whole blocks of the largest power of two up to 128 that leaves each rank one, so
    that block-scaled weights can be cut too. Raises ValueError where there is nothing left for a rank.
    """
    tp_rank, pp_rank = rank % tp, rank // tp
    kv = ranges(shape.kv_heads, tp)[tp_rank]
    vocabulary = ranges(shape.vocabulary, tp)[tp_rank]
    sizes = (128, 64, 32, 16, 8, 4, 2)
    block = next((size for size in sizes if shape.feed_forward % size == 0 and shape.feed_forward // size >= tp), 1)
    columns = ranges(shape.feed_forward // block, tp)[tp_rank]
    return Cut(
        tp_rank,
        tp,
        pp_rank,
        pp,
        layers=ranges(shape.layers, pp)[pp_rank],
        kv_heads=kv,
        heads=(kv[0] * shape.heads_per_kv, kv[1] * shape.heads_per_kv),
        feed_forward=(columns[0] * block, columns[1] * block),
        vocabulary=vocabulary,
    )


def ranges(size: int, parts: int) -> Sequence[tuple[int, int]]:
    """`size` things in `parts` runs, the first ones longer by one where it does not divide evenly."""
    if size < parts:
        raise ValueError(f"{size} cannot be cut into {parts} parts")
    least, longer = divmod(size, parts)
    stops = [least * (i + 1) + min(i + 1, longer) for i in range(parts)]
    return list(zip([0, *stops], stops, strict=False))
