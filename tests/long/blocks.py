"""Every block of the tiny Flash checkpoint on Triton's kernels, with its true input of 136 tokens.

    python -m tests.long.blocks

In Triton's interpreter, three minutes on one core. The suite does nine tokens of two blocks; with a GPU it does this.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

import torch

from tests.engine.test_gpu import block_difference, new_cache, new_model

BOUND = 0.008  # median over tokens of the mean difference, as for the twins


@torch.inference_mode()
def main() -> int:
    model = new_model()
    cache, worst = new_cache(model), 0.0
    for number in range(model.config.num_hidden_layers):
        median = block_difference(model, cache, number, 136).median().item()
        worst = max(worst, median)
        print(f"block {number}, ratio {model.config.ratio(number)}: {median:.1e}, at most {BOUND}", flush=True)
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
