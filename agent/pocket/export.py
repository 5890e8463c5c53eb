"""From a training checkpoint to a model directory in the official format: `python -m holdfast.agent.pocket.export`.

Renames the network's parameters to the checkpoint's tensor names, packs experts to FP4 and linears to FP8, and adds
the tokenizer and the protocol texts.
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from holdfast.agent.pocket.data import TOOLS_TEXT
from holdfast.agent.pocket.net import Block, HeadReduction, HyperConnection, Net, NetConfig
from holdfast.engine import ModelConfig, write_checkpoint
from holdfast.tools import ToolChoice

TOOLS = ("read", "outline", "find_symbol", "search", "edit", "recall")  # that it was trained with, in their order
MAX_NEW_TOKENS = 512  # a small model that loses its place repeats itself; its longest right answers are half of this
MODEL_DIR = Path(__file__).parent / "model"
PROTOCOL = f'''"""The protocol texts pocket was trained with; read as literals, never executed."""

TOOLS_TEMPLATE = {json.dumps(TOOLS_TEXT)}
'''


def official_weights(net: Net) -> dict[str, Tensor]:
    """The network's parameters under the names of the official checkpoint."""
    weights = {"embed.weight": net.embed, "head.weight": net.head, **_head("", net.reduce)}
    for number, block in enumerate(net.blocks):
        weights |= _block(f"layers.{number}.", block)
    mtp = net.mtp
    weights |= {"mtp.0.e_proj.weight": mtp.e_proj, "mtp.0.h_proj.weight": mtp.h_proj}
    weights |= {"mtp.0.enorm.weight": mtp.enorm, "mtp.0.hnorm.weight": mtp.hnorm}
    weights |= {**_block("mtp.0.", mtp.block), **_head("mtp.0.", mtp.reduce)}
    return {name: w.detach() for name, w in weights.items()}


def _head(prefix: str, head: HeadReduction) -> dict[str, Tensor]:
    named = {"hc_head_fn": head.fn, "hc_head_base": head.base, "hc_head_scale": head.scale, "norm.weight": head.norm}
    return {prefix + name: w for name, w in named.items()}


def _hyper(prefix: str, hyper: HyperConnection) -> dict[str, Tensor]:
    return {prefix + "fn": hyper.fn, prefix + "base": hyper.base, prefix + "scale": hyper.scale}


def _block(prefix: str, block: Block) -> dict[str, Tensor]:
    attn, ffn = block.attn, block.ffn
    named: dict[str, Tensor] = {"attn_norm.weight": block.attn_norm, "ffn_norm.weight": block.ffn_norm}
    named |= _hyper("hc_attn_", block.hc_attn) | _hyper("hc_ffn_", block.hc_ffn)
    for name in ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm", "wo_a", "wo_b"):
        named[f"attn.{name}.weight"] = getattr(attn, name)
    named["attn.attn_sink"] = attn.attn_sink
    compressors = {"attn.compressor.": attn.compressor}
    if attn.indexer is not None:
        named["attn.indexer.wq_b.weight"] = attn.indexer.wq_b
        named["attn.indexer.weights_proj.weight"] = attn.indexer.weights_proj
        compressors["attn.indexer.compressor."] = attn.indexer.compressor
    for name, c in compressors.items():
        if c is not None:
            named |= {name + "wkv.weight": c.wkv, name + "wgate.weight": c.wgate}
            named |= {name + "ape": c.ape, name + "norm.weight": c.norm}
    named["ffn.gate.weight"] = ffn.gate_weight
    if ffn.tid2eid is not None:
        named["ffn.gate.tid2eid"] = ffn.tid2eid
    else:
        assert ffn.gate_bias is not None
        named["ffn.gate.bias"] = ffn.gate_bias
    for w in ("w1", "w2", "w3"):
        named |= {f"ffn.experts.{e}.{w}.weight": matrix for e, matrix in enumerate(getattr(ffn, w))}
        named[f"ffn.shared_experts.{w}.weight"] = getattr(ffn, "shared_" + w)
    return {prefix + name: w for name, w in named.items()}


def model_config(config: NetConfig) -> ModelConfig:
    return ModelConfig(**dataclasses.asdict(config))


def export(run_dir: Path, directory: Path) -> None:
    """Write the last checkpoint of `run_dir` as a model directory."""
    net = Net(NetConfig())
    net.load_state_dict(torch.load(run_dir / "state.pt", weights_only=True)["net"])
    write_checkpoint(directory, model_config(net.config), official_weights(net))
    generation = directory / "generation_config.json"
    limited = {**json.loads(generation.read_text("utf-8")), "max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
    generation.write_text(json.dumps(limited, indent=2) + "\n", "utf-8")
    shutil.copy(run_dir / "tokenizer.json", directory / "tokenizer.json")
    (directory / "tools.json").write_text(ToolChoice(form="simple", names=TOOLS).model_dump_json() + "\n", "utf-8")
    (directory / "encoding").mkdir(exist_ok=True)
    (directory / "encoding" / "encoding_dsv4.py").write_text(PROTOCOL, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=Path(".runs/pocket"))
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    args = parser.parse_args()
    export(args.run_dir, args.out)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out}: {size:,} bytes")


if __name__ == "__main__":
    main()
