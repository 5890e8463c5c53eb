from tests.tools.shell.hands import anyio_backend, hands

__all__ = ["anyio_backend", "hands"]
