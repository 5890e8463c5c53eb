"""Compiled CPU kernels, one for each op of `holdfast.kernels.dispatch.OPS`. Arrays are numpy, C-contiguous float32.

A row of every result is computed by the same instructions in the same order, independent of the other rows.
"""
