"""The training copy of the model against the engine: one set of weights, the same logits."""

import asyncio
import random
from pathlib import Path

import torch
from torch import Tensor

from holdfast.agent.pocket.export import model_config, official_weights
from holdfast.agent.pocket.net import Net, NetConfig, Tables
from holdfast.agent.pocket.qat import Rounding
from holdfast.engine import Engine, EngineConfig, write_checkpoint

NUM_TOKENS = 512  # two windows, and 128 compressed entries of which the indexer chooses 64
ALL_CHOSEN = 256  # up to here every entry is chosen
# Both compute in float32 from equal weights and add in another order. Logits have a spread of about 1 (asserted), and
# the order moves them by some 1e-6. A wrong weight, norm or angle moves them by 1e-2 and more.
TOLERANCE = 1e-4
# Behind, the order may also decide which of two entries with nearly equal scores is the last one chosen: that moves
# logits by some 1e-3. Choosing all entries instead moves them by 5e-2 in the median.
TYPICAL = 1e-2


class WeightsOnly(Rounding):
    """Rounds weights to what the checkpoint stores, and no rows: engine numerics `plain`. A rounded row would make a
    difference in the last bit one of a whole step."""

    def kv_row(self, row: Tensor, rope: int) -> Tensor:
        return row

    def index_row(self, row: Tensor) -> Tensor:
        return row


def random_net() -> Net:
    """Pocket's shapes.

    Norms, sinks and biases begin as constants in training; here each value differs.

    All values are bf16: training leaves those in float32 that the checkpoint stores in bf16 (norms, router,
    compressors).
    """
    torch.manual_seed(1)
    net = Net(NetConfig())
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter += torch.randn_like(parameter) / 10
            parameter.copy_(parameter.bfloat16())
        net.head *= 4
    return net


def engine_logits(directory: Path, ids: list[int]) -> Tensor:
    async def score() -> Tensor:
        async with Engine.open(directory, EngineConfig(device="cpu", numerics="plain")) as engine:
            return await engine.score(ids)

    return asyncio.run(score())


def test_the_training_net_has_the_logits_of_the_engine(tmp_path: Path) -> None:
    net = random_net()
    write_checkpoint(tmp_path, model_config(net.config), official_weights(net))
    ids = random.Random(1).choices(range(net.config.vocab_size), k=NUM_TOKENS)
    with torch.no_grad():
        trained, _ = net(torch.tensor([ids]), Tables(net.config, NUM_TOKENS), WeightsOnly(True))
    assert trained.std() > 0.5
    error = (engine_logits(tmp_path, ids) - trained[0]).abs().amax(1)
    assert error[:ALL_CHOSEN].max() < TOLERANCE
    assert error[ALL_CHOSEN:].median() < TYPICAL
