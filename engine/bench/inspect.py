"""What a model directory holds and needs: parameters by kind, bytes of weights, bytes of state per context length, and
whether this machine has the memory.

Works from config.json alone; weights, where there are any, are verified by header on the way. Reads no weight data.
"""

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.engine.checkpoint.config import CSA, HCA, SWA, ModelConfig
from holdfast.engine.checkpoint.tensors import STORED_DTYPES, Checkpoint, TensorSpec, expected_tensors, stored_bytes
from holdfast.engine.placement import Placement, place
from holdfast.engine.state.cache import row_formats

CONTEXTS = (1024, 131072, 1048576)
FAMILY = {(4096, 43): "DeepSeek-V4-Flash", (7168, 61): "DeepSeek-V4-Pro"}
EXPERT_FORMATS = {"I8": "FP4", "F8_E4M3": "FP8", "BF16": "BF16", "F32": "FP32"}
KINDS = (
    "embedding",
    "head",
    "attention",
    "compressors and indexer",
    "routed experts",
    "shared experts",
    "router",
    "mHC",
    "norms",
    "MTP",
)


@dataclass(frozen=True)
class ModelReport:
    """Sizes of one model. Parameters count FP4 unpacked and leave out scales and the token-to-expert tables.

    `active_parameters` are those one token multiplies with: no unselected experts, no embedding table, no MTP.
    `memory_bytes` are the weights as stored, without a drafter that is skipped: what a GPU holds. `cpu_bytes` are the
    same weights expanded, as a CPU computes with them. `device_bytes` is the memory of the `device` that would run it
    here. `state_bytes` is one sequence at compact precision, by number of tokens, without the MTP block's window.
    """

    name: str
    layers: dict[str, int]
    has_mtp: bool
    expert_format: str
    parameters: dict[str, int]
    total_parameters: int
    active_parameters: int
    active_expert_parameters: int
    disk_bytes: int
    disk_is_estimated: bool
    memory_bytes: int
    cpu_bytes: int
    device: str
    device_bytes: int
    state_bytes: dict[int, int]

    @property
    def needed_bytes(self) -> int:
        """Of weights, on the device that would run it here."""
        return self.cpu_bytes if self.device == "cpu" else self.memory_bytes

    @property
    def fits(self) -> bool:
        """Whether the weights and a short session fit this machine."""
        return self.needed_bytes + self.state_bytes[CONTEXTS[0]] <= self.device_bytes

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON types (context lengths become strings)."""
        fields = dataclasses.asdict(self)
        state = {str(tokens): size for tokens, size in self.state_bytes.items()}
        return fields | {"state_bytes": state, "needed_bytes": self.needed_bytes, "fits": self.fits}

    def lines(self) -> list[str]:
        """The report as text for a terminal."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.layers.items())
        total = _count(self.total_parameters)
        if self.has_mtp:
            total += f" ({_count(self.total_parameters - self.parameters['MTP'])} without MTP)"
        rows = [("parameters", f"{total}, {_count(self.active_parameters)} active per token")]
        for kind, count in self.parameters.items():
            active = f", {_count(self.active_expert_parameters)} active" if kind == "routed experts" else ""
            rows.append((f"  {kind}", f"{_count(count)}{active}"))
        rows.append(("experts stored as", self.expert_format))
        rows.append(("on disk", _size(self.disk_bytes) + (" (no weights here: estimated)" * self.disk_is_estimated)))
        rows.append(("in memory on a GPU", f"{_size(self.memory_bytes)} of weights as stored"))
        rows.append(("in memory on a CPU", f"{_size(self.cpu_bytes)} of weights expanded to float32"))
        verdict = "fits" if self.fits else f"does not fit, it needs {_size(self.needed_bytes)} and its state"
        rows.append((f"this machine ({self.device.upper()})", f"{_size(self.device_bytes)} of memory: it {verdict}"))
        rows += [(f"state at {tokens:,} tokens", _size(size)) for tokens, size in self.state_bytes.items()]
        return [f"{self.name}: {sum(self.layers.values())} layers ({kinds})"] + [
            f"{key:<28}{text}" for key, text in rows
        ]


def inspect_model(directory: Path, placement: Placement | None = None) -> ModelReport:
    """Report on a model directory, for this machine unless another placement is given.

    Raises CheckpointError for a config or weights that could not be run.
    """
    directory = Path(directory)
    config = ModelConfig.from_dir(directory)
    checkpoint = Checkpoint.open(directory, config) if any(directory.glob("model*.safetensors*")) else None
    if checkpoint:
        config = checkpoint.config
    specs = expected_tensors(config)
    dtypes = {
        name: checkpoint.stored[name].dtype if checkpoint else STORED_DTYPES[specs[name].kind][0] for name in specs
    }
    placement = placement or place("auto")
    memory_bytes = sum(stored_bytes(name, spec, dtypes[name]) for name, spec in specs.items())

    parameters = _parameters(specs)
    total, experts = sum(parameters.values()), parameters["routed experts"]
    active_experts = experts * config.num_experts_per_tok // config.n_routed_experts
    active = total - experts + active_experts - parameters["embedding"] - parameters["MTP"]
    ratios = Counter(config.ratio(layer) for layer in range(config.num_hidden_layers))
    return ModelReport(
        name=_name(config),
        layers={kind: ratios[ratio] for kind, ratio in (("window", SWA), ("CSA", CSA), ("HCA", HCA))},
        has_mtp=config.has_mtp,
        expert_format=EXPERT_FORMATS[dtypes["layers.0.ffn.experts.0.w1.weight"]],
        parameters=parameters,
        total_parameters=total,
        active_parameters=active,
        active_expert_parameters=active_experts,
        disk_bytes=sum(path.stat().st_size for path in checkpoint.shards) if checkpoint else memory_bytes,
        disk_is_estimated=checkpoint is None,
        memory_bytes=memory_bytes,
        cpu_bytes=sum(math.prod(spec.shape) * (8 if spec.kind == "i64" else 4) for spec in specs.values()),
        device=placement.device.type,
        device_bytes=placement.memory_bytes(),
        state_bytes={tokens: sum(state_parts(config, tokens).values()) for tokens in CONTEXTS},
    )


def state_parts(config: ModelConfig, num_tokens: int) -> dict[str, int]:
    """Bytes of one sequence at compact precision, by part (spec 3.3); the MTP block's window is not counted."""
    c = config
    row, index_row = (fmt.row_bytes for fmt in row_formats(c))
    ratios = [c.ratio(layer) for layer in range(c.num_hidden_layers)]
    num_csa, num_hca = ratios.count(CSA), ratios.count(HCA)
    # float32 values and gates of the tokens in open blocks: two blocks of two halves in CSA, which overlaps
    csa_state = 2 * 4 * (2 * CSA * 2 * c.head_dim + 2 * CSA * 2 * c.index_head_dim)
    hca_state = 2 * 4 * HCA * c.head_dim
    return {
        "CSA entries": num_csa * (num_tokens // CSA) * row,
        "indexer keys": num_csa * (num_tokens // CSA) * index_row,
        "HCA entries": num_hca * (num_tokens // HCA) * row,
        "window": c.num_hidden_layers * c.sliding_window * row,
        "compressor state": num_csa * csa_state + num_hca * hca_state,
    }


def _name(config: ModelConfig) -> str:
    family = FAMILY.get((config.hidden_size, config.num_hidden_layers), "DeepSeek-V4 architecture")
    return family + (" with a DSpark drafter (skipped)" if config.is_dspark else "")


def _parameters(specs: dict[str, TensorSpec]) -> dict[str, int]:
    counts = dict.fromkeys(KINDS, 0)
    for name, spec in specs.items():
        if spec.kind != "i64":
            counts[_kind(name)] += math.prod(spec.shape)
    return counts


def _kind(name: str) -> str:
    marks = (
        ("mtp.", "MTP"),
        ("norm.", "norms"),
        ("hc_", "mHC"),
        ("embed.", "embedding"),
        ("head.", "head"),
        ("compressor.", "compressors and indexer"),
        ("indexer.", "compressors and indexer"),
        (".shared_experts.", "shared experts"),
        (".experts.", "routed experts"),
        (".gate.", "router"),
    )
    return next((kind for mark, kind in marks if mark in name), "attention")


def _count(number: int) -> str:
    for unit, letter in ((10**9, "B"), (10**6, "M")):
        if number >= unit:
            return f"{number / unit:,.2f} {letter}"
    return f"{number:,}"


def _size(num_bytes: int) -> str:
    for unit, letter in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.2f} {letter}"
    return f"{num_bytes} B"
