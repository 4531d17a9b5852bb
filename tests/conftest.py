"""Hypothesis: no deadline on machines shared with others, and in CI the same examples every time."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("llamaperf", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("llamaperf")
