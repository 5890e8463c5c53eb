"""Interleaved rotary embedding inside kernels (V4 spec 2.4). Twin: `kernels/rope.py`."""

from holdfast.kernels.gpu.jit import kernel, tl


@kernel
def rotate(x, freqs_cis, WIDTH: tl.constexpr, ROPE: tl.constexpr, BACK: tl.constexpr = False):
    """Rotate the last ROPE of WIDTH channels of float32 x [R, BLOCK], BLOCK being WIDTH up to a power of two.

    freqs_cis points at the (cos, sin) of the rows' position.
    """
    R: tl.constexpr = x.shape[0]
    BLOCK: tl.constexpr = x.shape[1]
    even, odd = tl.split(x.reshape(R, BLOCK // 2, 2))
    pair = tl.arange(0, BLOCK // 2) - (WIDTH - ROPE) // 2
    turned = (pair >= 0) & (pair < ROPE // 2)
    cos = tl.load(freqs_cis + 2 * pair, mask=turned, other=1.0)[None, :]
    sin = tl.load(freqs_cis + 2 * pair + 1, mask=turned, other=0.0)[None, :]
    if BACK:
        sin = -sin
    return tl.join(even * cos - odd * sin, even * sin + odd * cos).reshape(R, BLOCK)
