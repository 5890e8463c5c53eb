"""The one place that chooses between a torch twin and its Triton sibling.

An op is written twice under one signature: the torch twin, which is the specification and runs anywhere, and a
launcher of a Triton kernel. `@twin(reference)` on the launcher makes one function of them: CUDA tensors go to the
launcher, all others to the reference. Ops without a kernel yet are plain functions of torch.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor


def twin(reference: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Pair a launcher with its torch twin; both must have the same parameter names."""

    def pair(launcher: Callable[..., Any]) -> Callable[..., Any]:
        names, own = list(inspect.signature(reference).parameters), list(inspect.signature(launcher).parameters)
        assert names == own, f"{launcher.__name__}{own} is not the twin of {reference.__name__}{names}"

        @functools.wraps(reference)
        def op(*args: Any, **kwargs: Any) -> Any:
            tensor = next(a for a in args if isinstance(a, Tensor))
            return (launcher if tensor.is_cuda else reference)(*args, **kwargs)

        return op

    return pair
