"""Operations of the model: each a torch twin that specifies it, with compiled siblings for CPUs and GPUs.

`dispatch` chooses among them. Must not know the engine.
"""
