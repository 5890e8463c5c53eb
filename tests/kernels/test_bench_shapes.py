"""Flash and Pro are written down twice, since kernels import nothing of the engine: here the copies are held equal."""

import dataclasses

import pytest

from holdfast.engine.bench.inspect import FAMILY
from holdfast.engine.bench.random_checkpoint import MODELS
from holdfast.kernels.bench.case import FLASH, PRO, Shape


@pytest.mark.parametrize("shape", [FLASH, PRO], ids=lambda shape: shape.name)
def test_the_shapes_of_the_kernel_bench_are_those_of_the_models(shape: Shape) -> None:
    numbers = {name: value for name, value in dataclasses.asdict(shape).items() if name != "name"}
    assert numbers == {name: getattr(MODELS[shape.name], name) for name in numbers}


def test_inspect_names_the_models() -> None:
    sizes = {name: (model.hidden_size, model.num_hidden_layers) for name, model in MODELS.items()}
    assert FAMILY == {sizes["flash"]: "DeepSeek-V4-Flash", sizes["pro"]: "DeepSeek-V4-Pro"}
