"""pocket, the small model inside the package: its data, its training, its evaluation, and its checkpoint in `model/`.

Only `model/` is used by the agent.
"""
