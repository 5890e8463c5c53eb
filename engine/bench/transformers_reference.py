"""DeepSeek-V4 as the transformers library reads it, loaded from a directory in the official format.

The independent implementation that tests and the bench compare with (it needs the `dev` extra). It runs dequantised
weights in float32 and rounds neither activations nor state, so it is comparable to `plain` numerics only; it has no MTP
block (V4 spec 7.1).
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV4ForCausalLM, DynamicCache
from transformers.utils import logging

from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.tensors import Checkpoint
from holdfast.engine.checkpoint.writer import write_checkpoint


def load_oracle(directory: Path) -> DeepseekV4ForCausalLM:
    """The model of `directory`, float32 on CPU.

    Needs four bytes per parameter in the temporary folder while it loads.
    """
    logging.disable_progress_bar()
    checkpoint = Checkpoint.open(directory, ModelConfig.from_dir(directory))
    weights = {name: checkpoint.weight(name) for name in checkpoint.specs}
    with tempfile.TemporaryDirectory() as dequantised:
        write_checkpoint(Path(dequantised), checkpoint.config, weights, dequantised=True)
        from_pretrained: Any = DeepseekV4ForCausalLM.from_pretrained  # typed as if it never returned `info`
        model, info = from_pretrained(
            dequantised,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
    # a tensor that it does not find is made up, silently
    wrong = {what: keys for what, keys in info.items() if keys}
    assert not wrong, wrong
    oracle: DeepseekV4ForCausalLM = model.eval()
    return oracle


def new_cache(model: DeepseekV4ForCausalLM) -> DynamicCache:
    """Empty state of one sequence; it must know the config, or its layers have no place for compressed entries."""
    return DynamicCache(config=model.config)


@torch.inference_mode()
def oracle_logits(
    model: DeepseekV4ForCausalLM, ids: Sequence[int], cache: DynamicCache | None = None, last: int = 0
) -> Tensor:
    """Logits [len(ids), vocab] after the tokens in `cache`, which grows by `ids`; with `last`, only the last rows."""
    inputs = torch.tensor([list(ids)])
    output = model(input_ids=inputs, past_key_values=cache, use_cache=cache is not None, logits_to_keep=last)
    logits: Tensor = output.logits[0]
    return logits
