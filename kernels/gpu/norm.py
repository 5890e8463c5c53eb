"""RMS norm inside kernels (V4 spec 2). Twin: `kernels/norm.py`."""

from holdfast.kernels.gpu.jit import kernel, tl


@kernel
def inverse_rms(squares, WIDTH: tl.constexpr, eps):
    """Sums of squares over WIDTH channels -> rsqrt(mean + eps)."""
    return tl.rsqrt(squares / WIDTH + eps)
