"""How many kernels a GPU starts for a decoded row in each kind of layer, by what a second layer adds.

What is launched is counted, not run.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast.engine.checkpoint.config import CSA, HCA, SWA, ModelConfig
from holdfast.engine.checkpoint.tensors import Checkpoint
from holdfast.engine.graphs import GraphStep, StaticRows
from holdfast.engine.model import Model, through
from holdfast.engine.numerics import Numerics
from holdfast.engine.placement import place
from holdfast.engine.state.cache import Cache
from holdfast.kernels.gpu import jit

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

FLASH = Path(__file__).parents[1] / "fixtures" / "v4-tiny-flash"
# Kind of layer, whether contexts are so long that the indexer selects; at most 22 launches fit the budget of a decode
# step at 40 % of the bandwidth.
LAUNCHES = {(SWA, False): 19, (HCA, False): 22, (CSA, False): 22, (CSA, True): 26}
NO_KERNEL = {
    "empty",
    "view",
    "slice",
    "select",
    "unbind",
    "split",
    "alias",
    "detach",
    "_unsafe_view",
    "new_empty",
    "empty_like",
}


class OtherKernels(TorchDispatchMode):
    """Notes the ops of torch that would start a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name not in NO_KERNEL:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("ratio", "selects"), LAUNCHES)
def test_kernels_of_a_decoded_row(ratio: int, selects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.from_dir(FLASH)
    number = [config.ratio(i) for i in range(config.num_hidden_layers)].index(ratio)
    model = Model(Checkpoint.open(FLASH, config), Numerics("official"), place("cuda"))
    cache = Cache(config, model.numerics, 256, 2, 1, place("cuda"))
    step = GraphStep(StaticRows(1, 2, 256, cache.device).rows, has_many_entries=selects)
    launched: list[str] = []

    def count(kernel: Any, grid: Any, *args: Any, **constants: Any) -> None:
        launched.append(kernel.__name__)

    for name, module in list(sys.modules.items()):
        if name.startswith("holdfast.kernels.gpu.") and hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", count)
    streams = torch.zeros(1, config.hc_mult, config.hidden_size, dtype=torch.bfloat16, device=cache.device)
    step.freqs_cis(model.ops, ratio, model.layers[number].attn.freqs)  # shared by all layers
    block, caches = model.layers[number], [cache.layers[number]] * 2
    with torch.no_grad():
        through([block], streams, step, caches)  # the first step makes room that stays
        alone = len(launched)
        with OtherKernels() as other:
            through([block, block], streams, step, caches)
    assert len(launched) - 2 * alone == LAUNCHES[ratio, selects], launched[alone:]
    assert not other.names
