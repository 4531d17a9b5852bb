"""What identifies the content of weights, without reading hundreds of gigabytes of them every time.

Files of up to WHOLE bytes are hashed whole. Of larger weights every tensor is: its name, type and shape, and samples of its
bytes from the start to the end, together with size and time of change of the file. Training changes practically every
weight of a tensor it touches, so that another checkpoint of the same shape differs in the samples; whoever changes single
bytes between them changes the time as well. A mistake is on the safe side: a copy of the same file with another time is
quantized again. Files in the cache of Hugging Face have their own SHA-256 as name, which is used.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pytest_llamaperf.checkpoints.safetensors_files import BadCheckpoint, tensors_of_file

WHOLE = 512 * 2**20
_SAMPLES, _SAMPLE = 8, 4096  # of each tensor, and bytes of one

# Read again only if the file changed: size, time of change, and which file it is.
_known: dict[tuple[str, int, int, int, bool], str] = {}


def file_digest(path: Path, whole: int = WHOLE) -> str:
    """Of one file, in hex. Raises BadCheckpoint where it cannot be read."""
    try:
        target = path.resolve(strict=True)
        stat = target.stat()
        sampled = stat.st_size > whole and path.suffix == ".safetensors"
        identity = (str(target), stat.st_size, stat.st_mtime_ns, stat.st_ino, sampled)
        if identity not in _known:
            _known[identity] = _named_after_content(target) or (
                _of_samples(target, stat.st_size, stat.st_mtime_ns) if sampled else _of_all(target)
            )
        return _known[identity]
    except OSError as problem:
        raise BadCheckpoint(path, f"cannot be read: {problem.strerror}") from None


def folder_digest(folder: Path, whole: int = WHOLE) -> str:
    """Of a checkpoint: its weights, and the JSON and tokenizer files beside them. Raises BadCheckpoint."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja", ".txt") or path.name == "tokenizer.model":
            total.update(f"{path.name} {file_digest(path, whole)}\n".encode())
    return total.hexdigest()


def _named_after_content(target: Path) -> str | None:
    in_cache = target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name)
    return target.name if in_cache else None


def _of_all(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_samples(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256(f"{size} {changed}\n".encode())
    tensors = sorted(tensors_of_file(path).values(), key=lambda tensor: tensor.begin)
    with path.open("rb") as file:
        for tensor in tensors:
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape} {tensor.begin}\n".encode())
            reach = max(tensor.end - tensor.begin - _SAMPLE, 0)
            for sample in range(_SAMPLES):
                file.seek(tensor.begin + reach * sample // (_SAMPLES - 1))
                digest.update(file.read(min(_SAMPLE, tensor.end - tensor.begin)))
    return digest.hexdigest()
