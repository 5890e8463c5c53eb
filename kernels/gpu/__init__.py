"""Triton kernels for NVIDIA GPUs: `official` numerics on packed weights and packed rows.

One file per family of ops, one launcher per op under the name and signature of its torch twin in `kernels`. What
differs from the twins is how values are held:

    activations    bf16 where the twin's float32 carries bf16 rounding; float32 elsewhere (post, comb, values and gates,
    logits) weights        as in the checkpoint: e4m3 with e8m0 scales, e2m1 pairs with e8m0 scales, bf16, float32
    (`weights.py`) rows of a step `DeviceRows`: tensors, so that one captured graph serves steps of any length
    (`rows.py`) window rings   bf16 [slots, length, head_dim], which holds rounded rows exactly pools          packed,
    padded for 16-byte loads (`pools.py`)

Sums have an order that depends on the layer and the position alone: split sizes and inner tile sizes are constants of a
weight's shape, never of the number of rows, and nothing is added by float atomics. So a row's result does not depend on
its neighbours.
"""
