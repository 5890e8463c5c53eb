"""Durable state: sessions and responses in one SQLite file per data directory, stored attention state in files beside
it.

Imports none of our other packages.
"""

from holdfast.memory.backup import Copied, back_up, restore
from holdfast.memory.blobs import PAGES, TAILS, BlobStore, DamagedBlob
from holdfast.memory.branch_rows import LoggedEvent, TurnInfo
from holdfast.memory.branches import BranchInfo
from holdfast.memory.db import Database, StoreError
from holdfast.memory.directories import make_directory, sync_directory
from holdfast.memory.file_versions import NO_CHANGE, ChangeSet, FileVersion, PathState, Settled, version_of
from holdfast.memory.leases import SessionInUse
from holdfast.memory.names import NAME_PATTERN, NAME_RULE, SCANNED_CHARS
from holdfast.memory.reserve import making_room
from holdfast.memory.responses import ResponseStore, StoredResponse, owner_of
from holdfast.memory.search import Found
from holdfast.memory.session_log import SessionInfo, SessionLog
from holdfast.memory.sessions import SessionStore
from holdfast.memory.snapshot_rows import DiskUse, Freed, PageData, PageRow, Report, Saved, StoredTail, TailRow
from holdfast.memory.snapshots import SnapshotStore
from holdfast.memory.verify import check_indexes, check_records, repair_indexes

__all__ = [
    "NAME_PATTERN",
    "NAME_RULE",
    "NO_CHANGE",
    "PAGES",
    "SCANNED_CHARS",
    "TAILS",
    "BlobStore",
    "BranchInfo",
    "ChangeSet",
    "Copied",
    "DamagedBlob",
    "Database",
    "DiskUse",
    "FileVersion",
    "Found",
    "Freed",
    "LoggedEvent",
    "PageData",
    "PageRow",
    "PathState",
    "Report",
    "ResponseStore",
    "Saved",
    "SessionInUse",
    "SessionInfo",
    "SessionLog",
    "SessionStore",
    "Settled",
    "SnapshotStore",
    "StoreError",
    "StoredResponse",
    "StoredTail",
    "TailRow",
    "TurnInfo",
    "back_up",
    "check_indexes",
    "check_records",
    "make_directory",
    "making_room",
    "owner_of",
    "repair_indexes",
    "restore",
    "sync_directory",
    "version_of",
]
