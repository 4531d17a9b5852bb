"""What all tests have in common. Hypothesis: no deadline on machines shared with others, and in CI the same examples every time."""

from __future__ import annotations

import os
import signal
import uuid

import pytest
from hypothesis import settings
from reliability_page import faults

# A process that a shell started in the background ignores SIGINT, and all that it starts does too: tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("llamaperf", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("llamaperf")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m faults`: the fault table of docs/reliability.md."""
    for item in items:
        if isinstance(item, pytest.Function) and (item.path.name, item.originalname) in faults():
            item.add_marker(pytest.mark.faults)


@pytest.fixture(autouse=True)
def _sessions_within_tests_are_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What pytester runs inside a worker of pytest-xdist must not take itself for one, nor wait for those of other tests."""
    monkeypatch.setenv("LLAMAPERF_LOCKS", str(tmp_path_factory.getbasetemp() / "locks" / uuid.uuid4().hex))
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
