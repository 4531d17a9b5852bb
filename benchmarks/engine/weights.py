"""What is it worth that weights lie in memory as oneDNN reads them?

    python benchmarks/engine/weights.py [--rounds N]

Products of SmolLM2-135M's sizes in BF16 on one thread, by weights as they are and in that order, in turn. Prints the
median ratio for each number of tokens, and refuses results that are not the same to the bit.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from pytest_llamaperf.children.torch_llama.linears import blocked, product

SIZES = ((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576))  # [out, in]
LAYERS = 20  # weights of one size, so that no cache holds them all; of the head there is one
TOKENS = (1, 8, 16, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    plain = {size: [torch.randn(size).bfloat16() for _ in range(1 if size[0] > 10_000 else LAYERS)] for size in SIZES}
    ordered = {size: [blocked(weight) for weight in weights] for size, weights in plain.items()}
    print("out x in      " + "".join(f"{tokens:>5} tokens" for tokens in TOKENS))
    for size in SIZES:
        ratios = []
        for tokens in TOKENS:
            x = torch.randn(tokens, size[1]).bfloat16()
            assert all(
                torch.equal(product(x, a), product(x, b)) for a, b in zip(plain[size], ordered[size], strict=True)
            )
            pairs = [(seconds(x, plain[size]), seconds(x, ordered[size])) for _ in range(rounds)]
            ratios.append(statistics.median(before / after for before, after in pairs))
        print(f"{size[0]:>5} x {size[1]:<6}" + "".join(f"{ratio:>11.2f}x" for ratio in ratios))


def seconds(x: torch.Tensor, weights: list[torch.Tensor]) -> float:
    """For one product with each of the weights."""
    started = time.perf_counter()
    for weight in weights:
        product(x, weight)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
