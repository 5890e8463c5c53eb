"""Durable state: sessions and responses in one SQLite file per data directory, stored attention state in files beside
it.

Imports none of our other packages.
"""

from .backup import Copied, back_up, restore
from .blobs import PAGES, TAILS, BlobStore, DamagedBlob
from .branch_rows import LoggedEvent, TurnInfo
from .branches import BranchInfo
from .db import Database, StoreError
from .leases import SessionInUse
from .log import SessionInfo, SessionLog
from .names import NAME_PATTERN, NAME_RULE, SCANNED_CHARS
from .reserve import making_room
from .responses import ResponseStore, StoredResponse, owner_of
from .search import Found
from .sessions import SessionStore
from .snapshot_rows import DiskUse, Freed, PageData, PageRow, Report, Saved, StoredTail, TailRow
from .snapshots import SnapshotStore
from .verify import check_indexes, check_records, repair_indexes

__all__ = [
    "NAME_PATTERN",
    "NAME_RULE",
    "PAGES",
    "SCANNED_CHARS",
    "TAILS",
    "BlobStore",
    "BranchInfo",
    "Copied",
    "DamagedBlob",
    "Database",
    "DiskUse",
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
    "back_up",
    "check_indexes",
    "check_records",
    "making_room",
    "owner_of",
    "repair_indexes",
    "restore",
]
