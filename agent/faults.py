"""The log of holdfast's faults: tracebacks of tools that failed, in `faults.log` of the data directory.

Owns where it is and how large.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_BYTES = 2**20


@contextmanager
def logged(home: Path) -> Iterator[None]:
    """Until the block ends, faults go to the log of this data directory, which is made with the first of them."""
    handler = RotatingFileHandler(
        home / "faults.log", maxBytes=MAX_BYTES, backupCount=1, delay=True, encoding="utf-8", errors="backslashreplace"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("holdfast.tools")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
