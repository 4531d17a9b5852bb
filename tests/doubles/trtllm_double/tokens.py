"""The tokenizer of a checkpoint, without transformers: importing that takes seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


class Tokenizer:
    """What LLM.tokenizer is used for. Raises OSError, as transformers does, for a folder without one."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise OSError(
                f"Can't load tokenizer for '{folder}'. Make sure '{folder}' is the correct path to a directory "
                "containing all relevant files for a tokenizer."
            )
        from tokenizers import Tokenizer as Rust

        self._rust = Rust.from_file(str(path))
        self.eos_token_id: int | None = self._end(folder / "tokenizer_config.json")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        found: list[int] = self._rust.encode(text, add_special_tokens=add_special_tokens).ids
        return found

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        text: str = self._rust.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def _end(self, path: Path) -> int | None:
        if not path.exists():
            return None
        said = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
        word = said.get("content") if isinstance(said, dict) else said
        found: int | None = None if word is None else self._rust.token_to_id(word)
        return found
