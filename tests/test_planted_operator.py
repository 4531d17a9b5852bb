"""An operator that got slower is found by what people would run: two predicted sessions of pytest, and `llamaperf compare`."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result
from table_doubles import slower_tables

from pytest_llamaperf.commands import main

pytest_plugins = ["pytester"]
SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(
    model="llama-3.1-405b", recipe="llama-fp8", layout="tp8", workload=["min-latency-2048-128", "max-throughput-128-128"]
)
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""


def compared(pytester: pytest.Pytester, table: str) -> Result:
    """The installed tables with those in which one kind of operator takes 10 % longer."""
    slower_tables(pytester.path / "slow", 1.1, table=table)
    pytester.makepyfile(SUITE)
    for name, options in (("installed", []), ("slower", ["--tables=slow"])):
        pytester.runpytest("--gpu=h200", "--engine=predicted", f"--results={name}", *options)
    return CliRunner().invoke(main, ["compare", "installed", "slower"])


@pytest.mark.parametrize(("table", "kind"), [("gemm_perf", "GEMM"), ("custom_allreduce_perf", "all-reduce")])
def test_a_planted_loss_is_blamed_on_its_operator(pytester: pytest.Pytester, table: str, kind: str) -> None:
    result = compared(pytester, table)

    assert result.exit_code == 1, result.output
    assert f"{kind} moved most in 2 of 2 cases that got slower" in " ".join(result.output.split())
    assert "unlike" not in result.output
