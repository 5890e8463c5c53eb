"""Promises about a process killed anywhere in a save: what was there stays whole, the rest is cleaned up."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from holdfast.memory import blobs
from tests.memory.stored_state import files, is_as_saved, kill_at, load, open_store, save

POINTS = [
    *(
        (f"{when} {step} of {kind}", times)
        for kind, counts in (("pages", (1, 3)), ("tails", (1,)))
        for step in ("write", "fsync", "rename")
        for when in ("before", "after")
        for times in counts
        if (when, step) != ("after", "write")
    ),
    *((f"{when} sync of {kind}", 1) for kind in ("pages", "tails") for when in ("before", "after")),
    ("before commit", 1),
    ("after commit", 1),
]


def _save_and_die(home: Path, point: str, times: int) -> None:
    blobs.crash_point = kill_at(point, times)
    save(open_store(home), "a", 5)


@pytest.mark.parametrize(("point", "times"), POINTS, ids=lambda value: str(value).replace(" ", "-"))
def test_a_save_that_is_killed_harms_nothing(tmp_path: Path, point: str, times: int) -> None:
    store = open_store(tmp_path)
    first = save(store, "a", 2)
    store.close()
    process = multiprocessing.get_context("fork").Process(target=_save_and_die, args=(tmp_path, point, times))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    store = open_store(tmp_path)
    assert store.verify().damaged == []
    loaded = load(store, [first.id])
    assert loaded is not None and is_as_saved(*loaded)
    for path in files(tmp_path):
        os.utime(path, (time.time() - 3600,) * 2)
    store.gc()
    usage = store.usage()
    assert (usage.pages, usage.tails) == ((5, 2) if point == "after commit" else (2, 1))
    assert len(list(files(tmp_path))) == usage.pages + usage.tails
    second = save(store, "a", 5)
    loaded = load(store, [second.id])
    assert loaded is not None and is_as_saved(*loaded) and store.verify().damaged == []


def test_a_leftover_of_another_content_is_replaced(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    row = save(store, "a", 1)
    page_file, tail_file = sorted(files(tmp_path))
    store.forget_damaged("tails", row.id)
    store.gc()
    page_file.write_bytes(b"what a save named before it was killed")
    tail_file.write_bytes(b"")
    loaded = load(store, [save(store, "a", 1).id])
    assert loaded is not None and is_as_saved(*loaded)
