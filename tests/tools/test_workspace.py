"""Promises of confinement: no path, link, device or race reaches a file outside the workspace."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import ToolError, Workspace

Call = Callable[..., str]


def assert_refused_everywhere(call: Call, path: str, expected: str) -> None:
    assert call("read", path=path) == expected
    assert call("outline", path=path) == expected
    assert call("search", text="TOP", path=path) == expected
    assert call("edit", path=path, old="TOP", new="x") == expected


@pytest.mark.parametrize(
    "path",
    [
        *("../secret/key", "../ws-secrets/key", "a/../../secret/key", "../../../../../../etc/passwd", "//etc/passwd"),
        *("/etc/passwd", "/", "..", "/proc/self/environ", "/proc/self/root/etc/passwd", "/dev/fd/0", "/dev/zero"),
    ],
)
def test_paths_outside_are_refused(call: Call, path: str) -> None:
    assert_refused_everywhere(call, path, f"error: {path} is outside the workspace; use a path relative to its root")


def test_malformed_paths_are_refused(call: Call) -> None:
    assert_refused_everywhere(call, "", "error: path is empty; give a path relative to the workspace")
    long = "error: path " + "a" * 40 + "… is too long (5000 characters)"
    assert_refused_everywhere(call, "a" * 5000, long)
    for path in ("a\0b", "a\nb", "a\x1b[31m"):
        assert_refused_everywhere(call, path, f"error: path {path!a} has characters that no file name here may have")
    for path in ("a" * 300, "key.", "key ", "a//b"):
        assert_refused_everywhere(call, path, f"error: no file {path.replace('//', '/')}")


def test_spellings_of_an_inside_path_name_the_same_file(root: Path, call: Call) -> None:
    (root / "pkg").mkdir()
    (root / "pkg" / "a.py").write_text("X = 1\n")
    for path in ("pkg/a.py", "./pkg//a.py", "pkg/../pkg/a.py", str(root / "pkg" / "a.py")):
        assert call("outline", path=path) == "pkg/a.py: 1 symbol\n1 const X"


def test_links_leading_outside_are_refused(root: Path, call: Call) -> None:
    (root / "key").symlink_to("../secret/key")
    (root / "dir").symlink_to(root.parent / "secret")
    (root / "loop").symlink_to("loop")
    for path in ("key", "dir/key", "dir/../secret/key"):
        assert_refused_everywhere(
            call, path, f"error: {path} is outside the workspace; use a path relative to its root"
        )
    assert_refused_everywhere(call, "loop", "error: loop leads through too many links; name the file itself")
    assert call("search", text="TOP") == "no matches for TOP"
    assert (root.parent / "secret" / "key").read_text() == "TOP SECRET\n"


def test_a_link_inside_is_followed_and_named_by_its_target(root: Path, call: Call) -> None:
    (root / "a.txt").write_text("one\n")
    (root / "alias").symlink_to("a.txt")
    assert call("edit", path="alias", old="one", new="two") == "edited a.txt: 1 replacement\n1|two"
    assert (root / "alias").is_symlink() and (root / "a.txt").read_text() == "two\n"


def test_a_workspace_reached_through_a_link_works(root: Path) -> None:
    (root / "a.txt").write_text("one\n")
    link = root.parent / "link"
    link.symlink_to(root)
    assert Workspace(root).resolve(str(link / "a.txt")) == "a.txt"
    (root / "absolute").symlink_to(link / "a.txt")
    (root / "around").symlink_to("../link/../ws/a.txt")
    assert Workspace(root).resolve("absolute") == Workspace(root).resolve("around") == "a.txt"
    with pytest.raises(ToolError, match="is reached through a link"):
        Workspace(link)


def test_another_directory_under_the_name_of_the_root_is_not_the_workspace(root: Path, call: Call) -> None:
    (root / "a.txt").write_text("mine\n")
    root.rename(root.parent / "moved")
    root.symlink_to("secret")
    assert call("read", path="a.txt") == "1|mine"
    assert call("search", text="TOP") == "no matches for TOP"
    assert call("edit", path="a.txt", old="mine", new="yours") == "edited a.txt: 1 replacement\n1|yours"
    assert_refused_everywhere(call, "key", "error: no file key")
    assert (root.parent / "secret" / "key").read_text() == "TOP SECRET\n"


def test_a_workspace_gives_its_descriptor_back(root: Path) -> None:
    (root / "a.txt").write_text("one\n")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        workspace = Workspace(root)
        workspace.read_text(workspace.resolve("a.txt"))
        workspace.close()
        workspace.close()
    forgotten = [Workspace(root) for _ in range(50)]
    del forgotten
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        workspace.read_text("a.txt")


def test_a_file_swapped_for_a_link_after_the_check_is_not_followed(root: Path) -> None:
    (root / "a.txt").write_text("mine\n")
    workspace = Workspace(root)
    path = workspace.resolve("a.txt")
    file = workspace.read_text(path)
    (root / "a.txt").unlink()
    (root / "a.txt").symlink_to("../secret/key")
    with pytest.raises(ToolError, match="became a link"):
        workspace.read_bytes(path)
    with pytest.raises(ToolError, match="became a link"):
        workspace.replace(file, "stolen")
    assert (root.parent / "secret" / "key").read_text() == "TOP SECRET\n"


def test_a_directory_swapped_for_a_link_after_the_check_is_not_followed(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "dir" / "key").write_text("TOP SECRET\n")
    workspace = Workspace(root)
    file = workspace.read_text(workspace.resolve("dir/key"))
    (root / "dir").rename(root / "moved")
    (root / "dir").symlink_to("../secret")
    with pytest.raises(FileNotFoundError):
        workspace.read_bytes(file.path)
    with pytest.raises(FileNotFoundError):
        workspace.replace(file, "stolen")
    assert (root.parent / "secret" / "key").read_text() == "TOP SECRET\n"


def test_a_link_swapped_in_just_before_the_rename_is_replaced_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a.txt").write_text("mine\n")
    workspace = Workspace(root)
    file = workspace.read_text("a.txt")
    rename = os.rename

    def swap_then_rename(src: str, dst: str, **dir_fds: int) -> None:
        (root / "a.txt").unlink()
        (root / "a.txt").symlink_to("../secret/key")
        rename(src, dst, **dir_fds)

    monkeypatch.setattr(os, "rename", swap_then_rename)
    workspace.replace(file, "new\n")
    assert not (root / "a.txt").is_symlink() and (root / "a.txt").read_text() == "new\n"
    assert (root.parent / "secret" / "key").read_text() == "TOP SECRET\n"


def test_a_file_changed_between_match_and_write_is_refused(root: Path) -> None:
    (root / "a.txt").write_text("mine\n")
    workspace = Workspace(root)
    file = workspace.read_text("a.txt")
    (root / "a.txt").write_text("theirs\n")
    with pytest.raises(ToolError, match=r"a\.txt changed on disk since it was read; read it again"):
        workspace.replace(file, "new\n")
    assert (root / "a.txt").read_text() == "theirs\n"


def test_a_failed_write_leaves_the_file_and_no_litter(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a.txt").write_text("mine\n")
    workspace = Workspace(root)
    file = workspace.read_text("a.txt")

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        workspace.replace(file, "new\n")
    assert os.listdir(root) == ["a.txt"] and (root / "a.txt").read_text() == "mine\n"


def test_a_hard_link_to_a_file_outside_is_not_written_through(root: Path, call: Call) -> None:
    os.link(root.parent / "secret" / "key", root / "key")
    assert call("edit", path="key", old="TOP", new="NO") == "edited key: 1 replacement\n1|NO SECRET"
    assert (root / "key").read_text() == "NO SECRET\n"
    assert (root.parent / "secret" / "key").read_text() == "TOP SECRET\n"


def test_fifos_and_sockets_are_refused_without_waiting(root: Path, call: Call) -> None:
    os.mkfifo(root / "pipe")
    assert_refused_everywhere(call, "pipe", "error: pipe is not a regular file")
    assert call("search", text="x") == "no matches for x"


def test_system_files_are_refused_even_when_the_workspace_holds_them() -> None:
    workspace = Workspace("/")
    for path in ("proc/self/environ", "/proc/self/mem", "dev/zero", "sys/kernel"):
        with pytest.raises(ToolError, match="is a system file, not a file of the workspace"):
            workspace.resolve(path)


def test_files_of_git_are_not_edited(root: Path, call: Call) -> None:
    (root / ".git" / "hooks").mkdir(parents=True)
    for name in ("config", "hooks/pre-commit"):
        (root / ".git" / name).write_text("x\n")
        assert call("edit", path=f".git/{name}", old="x", new="y") == (
            f"error: .git/{name} belongs to git and is not edited by hand"
        )


def test_a_huge_file_is_refused_before_it_is_read(root: Path, call: Call) -> None:
    with open(root / "big", "wb") as f:
        f.truncate(10**12)
    assert call("read", path="big") == "error: big is too large (1000000000000 bytes; the limit is 16777216)"
