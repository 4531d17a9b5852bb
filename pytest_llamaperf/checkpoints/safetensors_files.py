"""What stands in the safetensors files of a checkpoint, read without the libraries that compute with it.

A file is eight bytes with the length of its header, the header in JSON, and the tensors one after the other. Every
header is checked against the size of its file, so that a copy that broke off is noticed here, and not by an engine.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.wording import counted, shown_path

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_LONGEST_HEADER = 100_000_000  # bytes, the limit of the format
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
FLOATS = ("F32", "BF16", "F16")  # what `values` reads
_CHUNKS = 64  # in which a tensor is read that is too large to be read whole


class BadCheckpoint(EngineError):
    """Files of a checkpoint are missing, cut off, or not what they should be; `path` is the first of them."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{shown_path(path)}: {problem}")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor stands. `dtype` is the format's word: F8_E4M3, BF16, F32; `begin` and `end` are bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Values in it."""
        return math.prod(self.shape)


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, of one file or of many with an index.

    Raises BadCheckpoint for what is missing, cut off, or contradicts itself.
    """
    one, index = folder / ONE_FILE, folder / INDEX
    if not index.exists():
        if not one.exists():
            raise BadCheckpoint(folder, f"holds neither {ONE_FILE} nor {INDEX}")
        return tensors_of_file(one)
    if one.exists():
        raise BadCheckpoint(folder, f"holds {ONE_FILE} and {INDEX}; remove what is not the checkpoint")
    found: dict[str, Tensor] = {}
    places = _places(index)
    for name in sorted(set(places.values())):
        if not (folder / name).exists():
            raise BadCheckpoint(
                folder / name, f"is missing; {INDEX} says {counted(_held(places, name), 'tensor')} of it"
            )
        found.update(tensors_of_file(folder / name))
    if found.keys() != places.keys():
        name = min(found.keys() ^ places.keys())
        raise BadCheckpoint(index, f"does not agree with the files beside it, for one about {name}")
    for name, tensor in found.items():
        if tensor.file.name != places[name]:
            raise BadCheckpoint(index, f"says that {name} is in {places[name]}; it is in {tensor.file.name}")
    return found


def tensors_of_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises BadCheckpoint for a header that is none, or not of this file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise BadCheckpoint(path, f"is no safetensors file, or cut off in its header ({size:,} bytes)")
            text = file.read(length)
    except OSError as problem:
        raise BadCheckpoint(path, f"cannot be read: {problem.strerror}") from None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise BadCheckpoint(path, "is no safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise BadCheckpoint(path, "is no safetensors file: its header is no mapping")
    header.pop("__metadata__", None)
    found = {name: _tensor(path, 8 + length, name, entry) for name, entry in header.items()}
    _check_extent(path, 8 + length, size, found)
    return found


def values(tensor: Tensor, most: int = 1 << 20) -> array[float]:
    """What the tensor holds; of one with more than `most` values, as many from all parts of it.

    Raises ValueError for another dtype than F32, BF16 and F16, BadCheckpoint where the file ends before.
    """
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{tensor.name} is {tensor.dtype}; only {', '.join(FLOATS)} are read as numbers")
    width = _BYTES[tensor.dtype]
    read = array("f")
    try:
        with tensor.file.open("rb") as file:
            for start, count in _runs(tensor.size, most):
                file.seek(tensor.begin + start * width)
                data = file.read(count * width)
                if len(data) < count * width:
                    raise BadCheckpoint(tensor.file, f"ends within {tensor.name}")
                read.extend(_floats(data, tensor.dtype))
    except OSError as problem:
        raise BadCheckpoint(tensor.file, f"cannot be read: {problem.strerror}") from None
    return read


def _places(index: Path) -> Mapping[str, str]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except OSError as problem:
        raise BadCheckpoint(index, f"cannot be read: {problem.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadCheckpoint(index, "is no index of a checkpoint: it has no weight_map in JSON") from None
    plain = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    if not plain or not places or any(Path(name).name != name for name in places.values()):
        raise BadCheckpoint(index, "is no index of a checkpoint: its weight_map does not name files beside it")
    return dict(places)


def _held(places: Mapping[str, str], file: str) -> int:
    return sum(place == file for place in places.values())


def _tensor(path: Path, data: int, name: str, entry: Any) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if all(
            type(length) is int and length >= 0 for length in shape
        ):
            if dtype not in _BYTES:
                raise BadCheckpoint(path, f"{name} is of the type {dtype}, which is unknown here")
            if end - begin != math.prod(shape) * _BYTES[dtype] or begin < 0:
                raise BadCheckpoint(path, f"{name} is {dtype} {shape}, and has {end - begin:,} bytes")
            return Tensor(name, dtype, tuple(shape), path, data + begin, data + end)
    raise BadCheckpoint(path, f"is no safetensors file: its header has no type, shape and place of {name}")


def _check_extent(path: Path, data: int, size: int, found: Mapping[str, Tensor]) -> None:
    """Tensors stand one after the other, from the end of the header to the end of the file."""
    reached = data
    for tensor in sorted(found.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != reached:
            raise BadCheckpoint(path, f"{tensor.name} does not begin where the tensor before it ends")
        reached = tensor.end
    if size < reached:
        raise BadCheckpoint(path, f"is cut off: {size:,} of {reached:,} bytes")
    if size > reached:
        raise BadCheckpoint(path, f"is {size:,} bytes long, {size - reached:,} more than its tensors")


def _runs(size: int, most: int) -> Iterator[tuple[int, int]]:
    """First value and number of values, of what is read."""
    if size <= most:
        yield 0, size
        return
    count = max(most // _CHUNKS, 1)
    for chunk in range(min(_CHUNKS, most)):
        yield chunk * (size - count) // max(min(_CHUNKS, most) - 1, 1), count


def _floats(data: bytes, dtype: str) -> array[float]:
    if dtype == "F16":
        return array("f", struct.unpack(f"<{len(data) // 2}e", data))
    if dtype == "BF16":  # the upper half of a float32
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        data = bytes(wide)
    read = array("f", data)
    if sys.byteorder == "big":
        read.byteswap()
    return read
