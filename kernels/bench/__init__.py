"""What the kernels for GPUs take at the shapes of the real models: `python -m holdfast.kernels.bench --json`.

A case is one call of one op, at one shape. `cases` of a family's file lists them; the same list is compiled ahead of
time by `tests/kernels/gpu`, so what is measured is what was checked for spills.
"""
