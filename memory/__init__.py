"""What outlives a process: one SQLite file per data directory. Imports none of our other packages."""

from .branches import LoggedEvent, TurnInfo
from .db import Database, StoreError
from .log import SessionInfo, SessionLog
from .search import Found
from .sessions import BranchInfo, SessionStore

__all__ = [
    "BranchInfo",
    "Database",
    "Found",
    "LoggedEvent",
    "SessionInfo",
    "SessionLog",
    "SessionStore",
    "StoreError",
    "TurnInfo",
]
