"""Promises of a full disk: a session can be deleted there, and that makes room."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
from holdfast.memory import BlobStore, Database, ResponseStore, SessionStore, SnapshotStore, StoreError
from holdfast.agent.session.catalog import SessionCatalog
home = Path(sys.argv[1]) / "home"
database = Database(home)
sessions = SessionStore(database)
catalog = SessionCatalog(sessions, SnapshotStore(database, BlobStore(home)), ResponseStore(database, sessions))
log = sessions.open(sessions.create("/w", "m", "big"))
log.start_turn([], [])
try:
    while True:
        log.append([("text", {"text": "word " * 20_000})], [1])
except StoreError as e:
    assert "full" in str(e), e
log.close()
database.close()
database = Database(home)
sessions = SessionStore(database)
catalog = SessionCatalog(sessions, SnapshotStore(database, BlobStore(home)), ResponseStore(database, sessions))
catalog.remove(log.session)
log = sessions.open(sessions.create("/w", "m", "next"))
log.start_turn([("user", {"text": "word " * 20_000})], [1])
print("done")
"""


def test_a_session_can_be_deleted_on_a_full_disk(tmp_path: Path) -> None:
    command = 'mount -t tmpfs -o size=48m tmpfs "$1" 2>/dev/null || exit 77; exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", str(tmp_path), sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system may be mounted here")
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
