"""What outlives a process: sessions in one SQLite file per data directory, and files of stored attention state beside it.

Imports none of our other packages.
"""

from .blobs import PAGES, TAILS, BlobStore, DamagedBlob
from .branches import BranchInfo, LoggedEvent, TurnInfo
from .db import Database, StoreError
from .log import SessionInfo, SessionLog
from .names import NAME_PATTERN, NAME_RULE, SCANNED_CHARS
from .responses import ResponseStore, StoredResponse, owner_of
from .search import Found
from .sessions import SessionInUse, SessionStore
from .snapshot_rows import Freed, PageData, PageRow, Report, Saved, StoredTail, TailRow, Usage
from .snapshots import SnapshotStore

__all__ = [
    "NAME_PATTERN",
    "NAME_RULE",
    "PAGES",
    "SCANNED_CHARS",
    "TAILS",
    "BlobStore",
    "BranchInfo",
    "DamagedBlob",
    "Database",
    "Found",
    "Freed",
    "LoggedEvent",
    "PageData",
    "PageRow",
    "Report",
    "ResponseStore",
    "Saved",
    "SessionInUse",
    "SessionInfo",
    "SessionLog",
    "SessionStore",
    "SnapshotStore",
    "StoreError",
    "StoredResponse",
    "StoredTail",
    "TailRow",
    "TurnInfo",
    "Usage",
    "owner_of",
]
