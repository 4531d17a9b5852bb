"""Documents of the offline tasks, as lm-eval asks for them: this folder is its `include_path`.

The files are found beside this one, wherever the package is installed; `data_files` would be relative to where lm-eval
was started. They are kept in memory; `dataset_path: json` would write a copy of them into the cache of `datasets`.

Imports nothing of this package: lm-eval loads it by its path, in the process and with the interpreter that evaluate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def documents(file: str, **metadata: Any) -> dict[str, Dataset]:
    """What a task file names in `dataset_kwargs`; lm-eval passes its metadata as well."""
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
