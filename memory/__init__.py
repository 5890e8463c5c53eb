"""What outlives a process: one SQLite file per data directory. Imports none of our other packages."""

from .db import Database, StoreError
from .sessions import LoggedEvent, SessionInfo, SessionLog, SessionStore

__all__ = ["Database", "LoggedEvent", "SessionInfo", "SessionLog", "SessionStore", "StoreError"]
