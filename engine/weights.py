"""The weights of a model as one rank's ops take them: reads only this rank's part of the checkpoint.

Layers say what they need and which part of it; how a weight is kept (here: dense float32) is decided here alone. A
linear is transposed, [in, out], and several that read the same input become one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.engine.checkpoint.tensors import Checkpoint
from holdfast.engine.columns import Parallel


class Part(NamedTuple):
    """Some rows (outputs) of a stored weight [out, in]; None: all."""

    name: str
    rows: range | None = None


def as_parts(parts: Sequence[Part | str]) -> list[Part]:
    """A name stands for all of a weight."""
    return [Part(part) if isinstance(part, str) else part for part in parts]


class Weights:
    """Weights below `prefix` in the checkpoint. All methods raise CheckpointError for damaged values."""

    def __init__(self, checkpoint: Checkpoint, parallel: Parallel, prefix: str = ""):
        self.parallel = parallel
        self._checkpoint, self._prefix = checkpoint, prefix

    def inside(self, prefix: str) -> "Weights":
        return Weights(self._checkpoint, self.parallel, self._prefix + prefix)

    def value(self, name: str, rows: range | None = None) -> Tensor:
        """A tensor that is used as it is stored, float32 (tid2eid int64): norms, biases, sinks."""
        return self._checkpoint.weight(self._prefix + name, rows)

    def table(self, name: str) -> Any:
        """A row for each token."""
        return self.value(name)

    def matrix(self, weight: Tensor) -> Any:
        """A float32 linear [out, in] that was computed from values."""
        return weight.t()

    def linear(self, *parts: Part | str) -> Any:
        """Parts side by side: [in, the sum of their outs]."""
        return self._outputs(*parts).t()

    def grouped_linear(self, part: Part, groups: int) -> Any:
        """A part whose outputs are `groups` groups with separate inputs: [groups, in, out / groups]."""
        return self._outputs(part).unflatten(0, (groups, -1)).transpose(1, 2)

    def experts(self, count: int, inner: range, width: range) -> tuple[Any, Any]:
        """All experts' w1 and w3 side by side, [count, in, 2 * outputs], and their w2, [count, inner, outputs].

        Of w1 and w3 the outputs `inner`, of w2 the outputs `width`.
        """

        def stacked(rows: range, *names: str) -> Tensor:
            return torch.stack(
                [self.linear(*(Part(f"experts.{e}.{name}.weight", rows) for name in names)) for e in range(count)]
            )

        return stacked(inner, "w1", "w3"), stacked(width, "w2")

    def _outputs(self, *parts: Part | str) -> Tensor:
        read = [self._checkpoint.weight(self._prefix + part.name, part.rows) for part in as_parts(parts)]
        return read[0] if len(read) == 1 else torch.cat(read)
