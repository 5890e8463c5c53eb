"""Promises of the choice: the best sandbox that works, and what it holds."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.tools.sandbox.bubblewrap import find_bubblewrap
from holdfast.tools.sandbox.choose import Sandbox, choose
from holdfast.tools.sandbox.confinement import Confinement
from holdfast.tools.sandbox.landlock import SIGNALS, Landlock
from holdfast.tools.sandbox.process import Ended, SandboxError
from tests.tools.sandbox.place import sandboxed


async def ended(sandbox: Sandbox, confinement: Confinement, script: str) -> Ended:
    async with await sandbox.start(["sh", "-c", script], confinement.workspace, confinement) as started:
        return await started.wait()


def test_a_sandbox_that_cannot_be_set_up_is_not_the_commands_failure(root: Path) -> None:
    place = sandboxed("bubblewrap", root)

    async def run() -> Ended:
        sandbox = await choose("bubblewrap", place.confinement)
        return await ended(sandbox, replace(place.confinement, writable=(root / "missing",)), "exit 1")

    assert asyncio.run(run()) == Ended(None, failure="bubblewrap could not set up the sandbox")


def test_without_bubblewrap_it_is_landlock_and_the_reason_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = sandboxed("landlock", root)
    (root / "bin").mkdir()
    for name in ("sh", "true"):
        (root / "bin" / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(root / "bin"))
    sandbox = asyncio.run(choose("auto", place.confinement))
    assert sandbox.name == "landlock" and sandbox.level.startswith("partial: ")
    assert sandbox.reason == "bubblewrap (bwrap) is not installed"


@pytest.mark.parametrize("mode", [0o755, 0o757])
def test_a_bubblewrap_that_others_can_replace_is_not_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    (root / "bin").mkdir()
    (root / "bin/bwrap").write_text("#!/bin/sh\n")
    (root / "bin/bwrap").chmod(0o755)
    (root / "bin").chmod(mode)
    (root / "work").mkdir()
    monkeypatch.setenv("PATH", str(root / "bin"))
    if mode == 0o755:
        assert find_bubblewrap(root / "work") == root / "bin/bwrap"
        return
    with pytest.raises(SandboxError):
        find_bubblewrap(root / "work")


def test_landlock_does_not_claim_to_hide_what_lies_in_the_workspace(root: Path) -> None:
    place = sandboxed("landlock", root)
    (root / "work/data").mkdir()
    with pytest.raises(SandboxError, match=r"cannot hide .*/work/data"):
        asyncio.run(choose("landlock", replace(place.confinement, hidden=(root / "work/data",))))


@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5])
def test_an_older_landlock_holds_what_it_says(root: Path, monkeypatch: pytest.MonkeyPatch, abi: int) -> None:
    place = sandboxed("landlock", root)
    if (newest := Landlock()).abi < abi:
        pytest.skip(f"this kernel has ABI {newest.abi}")
    monkeypatch.setattr("holdfast.tools.sandbox.landlock.kernel_abi", lambda: abi)
    (root / "file").write_text("before")
    (root / "data/token").write_text("a-secret")
    script = f"""
echo new > new; echo x > ../file; cat {root}/data/token > stolen; mv ../file .
python3 -c 'import os; os.truncate("../file", 0)'; python3 -c 'import socket; socket.socket()' && touch reached
"""
    place.sh(script)
    assert (root / "file").read_text() == "before" and (root / "work/new").read_text() == "new\n"
    assert (root / "work/stolen").read_text() == "" and not (root / "work/reached").exists()
    assert SIGNALS in Landlock().level
