"""What does the harness cost? The same engine through the plugin's bench, and driven by a bare loop, round by round.

    python benchmarks/overhead/overhead.py [--rounds N]

Through the plugin: child process, JSON over a pipe, watching the CPU, completeness checks, progress. Bare: the engine's
own code in a forked process, told to run again as soon as it is done. Both give throughput by the engine's own clock,
which is what the suites judge. Prints the ratio pair by pair, and its median with a 95 % interval (sign test).
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pytest_llamaperf.catalog import case_of_key
from pytest_llamaperf.engines import EngineSpec, Surroundings
from pytest_llamaperf.engines.hosted import checkpoint_for
from pytest_llamaperf.engines.torch import TorchEngine, settings_for
from pytest_llamaperf.hosting.phases import Deadlines
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.measuring import Rounds, Sampling

CASE = case_of_key("cpu", "torch/smollm2-135m/bf16/tp1/max-throughput-16-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    wanted = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        surroundings = Surroundings(Deadlines(), Path(folder), lambda text, done, total: None)
        spec = EngineSpec.of(CASE)
        settings = settings_for(spec, checkpoint_for(spec, surroundings))
        bare = start_bare(settings)
        engine = TorchEngine(spec, surroundings)
        try:
            rounds = Rounds(CASE, Sampling(restarts=1, rounds=wanted, watch_cpu=True))
            rounds.warm_up(engine)
            bare_seconds(bare)
            ratios = []
            for number in range(wanted):
                if number % 2:
                    rounds.measure(engine)
                    alone = bare_seconds(bare)
                else:
                    alone = bare_seconds(bare)
                    rounds.measure(engine)
                ratios.append(alone / rounds.kept()[-1].elapsed)
        finally:
            engine.close()
            bare.send(None)
    ratios.sort()
    # The order statistics between which the median lies with 95 % confidence.
    beside = int(0.98 * wanted**0.5)
    low, high = ratios[max(0, wanted // 2 - beside)], ratios[min(wanted - 1, wanted // 2 + beside)]
    print(f"throughput through the plugin over bare: {statistics.median(ratios):.4f} ({low:.4f} to {high:.4f}), "
          f"{wanted} pairs, single pairs {ratios[0]:.3f} to {ratios[-1]:.3f}")  # fmt: skip


def start_bare(settings: dict[str, Any]) -> Connection:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=bare_loop, args=(settings, theirs), daemon=True).start()
    return ours


def bare_loop(settings: dict[str, Any], connection: Connection) -> None:
    from pytest_llamaperf.children.torch_llama.rank import Rank, Settings

    rank = Rank(Settings(**settings), 0, Path("unused"), lambda text, done, total: None)
    lengths = [tuple(pair) for pair in request_lengths(dataclasses.replace(CASE.work))]
    while connection.recv() is not None:
        traces = rank.run(lengths, None)["traces"]
        connection.send(max(trace[2] for trace in traces) - min(trace[0] for trace in traces))


def bare_seconds(connection: Connection) -> float:
    connection.send("run")
    return float(connection.recv())


if __name__ == "__main__":
    main()
