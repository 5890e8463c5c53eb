"""Promises of confinement: no path, link, device or race reaches a file outside the workspace."""

import asyncio
import errno
import gc
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast.tools import Context, Result, ToolError, Workspace, run_tool, toolset

Call = Callable[..., str]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


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
    assert_refused_everywhere(call, "a\0b", r"error: path 'a\x00b' has characters that no file name here may have")
    for path, shown in (
        ("a" * 300,) * 2,
        ("key.",) * 2,
        ("key ",) * 2,
        ("a//b", "a/b"),
        ("a\nb", r"a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
    ):
        assert_refused_everywhere(call, path, f"error: no file {shown}")


NAMES = {
    "1\u202fPM.txt": r"1\u202fPM.txt",
    "a\u00a0b.txt": r"a\xa0b.txt".replace("xa0", "u00a0"),
    "\u3000.txt": r"\u3000.txt",
    "\U0001f468\u200d\U0001f469.txt": "\U0001f468\\u200d\U0001f469.txt",
    "a\u202etxt.exe": r"a\u202etxt.exe",
    "two\nlines": r"two\nlines",
    "\x1b[31mred": r"\x1b[31mred",
    r"back\slash": r"back\\slash",
    r"like\n": r"like\\n",
    "latin\udce9": r"latin\xe9",
    "plain é 配置.txt": "plain é 配置.txt",
}


@pytest.mark.parametrize(("name", "shown"), NAMES.items(), ids=map(ascii, NAMES))
def test_any_name_is_found_and_has_one_spelling_on_one_line(root: Path, call: Call, name: str, shown: str) -> None:
    (root / name).write_text("TOP\n")
    assert call("search", text="TOP") == f"1 match in 1 file\n{shown}:1: TOP"
    asked = [shown] if "\udce9" in name else [shown, name]
    for path in asked:
        assert call("read", path=path) == "1|TOP"
        assert call("search", text="TOP", path=path) == f"1 match in 1 file\n{shown}:1: TOP"
    assert call("edit", path=shown, old="TOP", new="x") == f"edited {shown}: 1 replacement\n1|x"
    assert (root / name).read_text() == "x\n" and os.listdir(root) == [name]


def test_a_name_in_another_spelling_is_found_when_there_is_just_one(root: Path, call: Call) -> None:
    nfd, nfc = "re\u0301sume\u0301", "r\u00e9sum\u00e9"
    (root / nfd).mkdir()
    (root / nfd / "1\u202fPM.txt").write_text("one\n")
    assert call("read", path=f"{nfc}/1 PM.txt") == "1|one"
    assert call("edit", path=f"{nfc}/1 PM.txt", old="one", new="two").startswith(rf"edited {nfd}/1\u202fPM.txt: 1")
    (root / nfd / "1\u00a0PM.txt").write_text("another\n")
    assert call("read", path=f"{nfd}/1 PM.txt").startswith(f"error: no file {nfd}/1 PM.txt")
    (root / nfc).mkdir()
    assert call("read", path=f"{nfc}/x").startswith(f"error: no file {nfc}/x")
    assert Workspace(root).resolve(f"{nfd}/x") == f"{nfd}/x"


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
    gc.collect()  # what other tests left open
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
        workspace.read_bytes(path, 100)
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
        workspace.read_bytes(file.path, 100)
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
    with pytest.raises(ToolError, match=r"a\.txt could not be changed \(No space left on device\)"):
        workspace.replace(file, "new\n")
    assert os.listdir(root) == ["a.txt"] and (root / "a.txt").read_text() == "mine\n"


def test_a_hard_link_to_a_file_outside_is_not_written_through(root: Path, call: Call) -> None:
    os.link(root.parent / "secret" / "key", root / "key")
    assert call("edit", path="key", old="TOP", new="NO") == (
        "edited key: 1 replacement\n1|NO SECRET\n(key had another name, a hard link, which keeps the old contents)"
    )
    assert call("edit", path="key", old="NO", new="SOME") == "edited key: 1 replacement\n1|SOME SECRET"
    call("edit", path="key", old="SOME", new="NO")
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


def test_our_own_files_are_neither_read_nor_edited(root: Path) -> None:
    home = root / "data" / "holdfast"
    home.mkdir(parents=True)
    for path in (home / "token", root / "users.json", root / "mine.py"):
        path.write_text("TOP = 1\n")
    (root / "alias").symlink_to(home)
    os.link(root / "users.json", root / "other.json")
    context = Context(Workspace(root, own=(home, root / "users.json")))
    tools = toolset(context.workspace, lambda query, limit: ())

    def run(name: str, arguments: dict[str, str]) -> Result:
        return asyncio.run(run_tool(tools, name, json.dumps(arguments), context))

    (root / "data").rename(root / "moved")
    for path in ("moved/holdfast/token", "alias/token", "users.json", "other.json", str(root / "users.json")):
        for name, more in (
            ("read", {}),
            ("outline", {}),
            ("search", {"text": "TOP"}),
            ("edit", {"old": "1", "new": "2"}),
        ):
            result = run(name, {"path": path, **more})
            assert not result.ok and "TOP" not in result.output, (name, path)
    found = run("search", {"text": "TOP"}).output
    assert "mine.py:1: TOP" in found and "token" not in found and "json" not in found
    (root / "moved" / "holdfast" / "own.py").write_text("TOP = 1\n")
    assert run("find_symbol", {"name": "TOP"}).output == "mine.py:1 const TOP"
    for inside in (root / "moved" / "holdfast", home.parent.parent / "moved" / "holdfast" / "sub"):
        inside.mkdir(exist_ok=True)
        with pytest.raises(ToolError, match="holdfast's own files"):
            Workspace(inside, own=(root / "moved" / "holdfast",))


@pytest.mark.parametrize(
    "path",
    [
        *(
            ".git/config",
            "sub/.git/hooks/pre-commit",
            ".GIT/config",
            ".git /config",
            ".git./config",
            ".gi\u200ct/config",
        ),
        *("GIT~1/config", "tree/.git", "meta/config", "meta/hooks/post-merge", "meta/worktrees/w/config.worktree"),
        *(".ssh/authorized_keys", "sub/.ssh/config"),
    ],
)
def test_files_that_git_or_a_login_obeys_are_not_edited(root: Path, call: Call, path: str) -> None:
    for folder in ("meta/objects", "meta/refs"):
        (root / folder).mkdir(parents=True)
    (root / "meta" / "HEAD").write_text("ref: refs/heads/main\n")
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("x\n")
    assert call("edit", path=path, old="x", new="y").startswith("error: ")
    assert (root / path).read_text() == "x\n"
    (root / "objects").write_text("x\n")
    assert call("edit", path="objects", old="x", new="y").startswith("edited objects")


@pytest.mark.parametrize("path", [".bashrc", ".config/autostart/x.desktop", ".profile", "Library/LaunchAgents/x.plist"])
def test_hidden_files_of_a_home_are_not_edited_through_a_workspace_that_holds_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    home = root / "ann"
    monkeypatch.setenv("HOME", str(home))
    (home / path).parent.mkdir(parents=True)
    (home / "proj").mkdir()
    for name in (path, "proj/.bashrc"):
        (home / name).write_text("x\n")
    for workspace in (Workspace(root), Workspace(home)):
        below = str(home.relative_to(workspace.root))
        with pytest.raises(ToolError, match="hidden file of a home directory"):
            workspace.replace(workspace.read_text(workspace.resolve(f"{below}/{path}")), "y")
        workspace.replace(workspace.read_text(workspace.resolve(f"{below}/proj/.bashrc")), "y")
    assert (home / path).read_text() == "x\n"


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


def attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def test_an_edit_keeps_extended_attributes_and_acls(root: Path, call: Call) -> None:
    (root / "a.txt").write_text("one\n")
    try:
        os.setxattr(root / "a.txt", "user.note", b"\0kept")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    # version 2, then entries of tag, permissions and id: owner rw, user 4711 rw, group r, mask rw, others none
    entries = [(0x01, 6, -1), (0x02, 6, 4711), (0x04, 4, -1), (0x10, 6, -1), (0x20, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    with suppress(OSError):  # a file system without ACLs
        os.setxattr(root / "a.txt", "system.posix_acl_access", acl)
    before = attributes(root / "a.txt"), (root / "a.txt").stat().st_mode
    call("edit", path="a.txt", old="one", new="two")
    assert (attributes(root / "a.txt"), (root / "a.txt").stat().st_mode) == before
    assert (root / "a.txt").read_text() == "two\n"


@needs_root
@pytest.mark.parametrize("mode", [0o640, 0o4755, 0o2755, 0o6711 | 0o200])
def test_an_edit_keeps_owner_group_and_setuid(root: Path, call: Call, mode: int) -> None:
    (root / "a.txt").write_text("one\n")
    os.chown(root / "a.txt", 4711, 4712)
    (root / "a.txt").chmod(mode)
    call("edit", path="a.txt", old="one", new="two")
    status = (root / "a.txt").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (4711, 4712, mode)


def test_an_edit_that_cannot_keep_an_attribute_is_made_in_place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a.txt").write_text("a longer text than the new one\n")
    inode = (root / "a.txt").stat().st_ino

    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    replace_text(root, "two\n")
    assert (root / "a.txt").read_text() == "two\n" and (root / "a.txt").stat().st_ino == inode
    assert os.listdir(root) == ["a.txt"] and os.listdir(root.parent / "backups") == []


def replace_text(root: Path, text: str) -> None:
    workspace = Workspace(root, backups=root.parent / "backups")
    workspace.replace(workspace.read_text("a.txt"), text)


def test_a_hard_link_to_a_file_outside_is_not_written_in_place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.link(root.parent / "secret" / "key", root / "a.txt")

    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(
        ToolError, match=r"a\.txt has another name, a hard link, that writing it in place would change too"
    ):
        replace_text(root, "two\n")
    assert (root.parent / "secret" / "key").read_text() == "TOP SECRET\n"


@needs_root
def test_a_bind_mounted_file_is_written_in_place(root: Path, call: Call) -> None:
    (root / "a.txt").write_text("below\n")
    (root.parent / "over.txt").write_text("one\n")
    mount = ["mount", "--bind", str(root.parent / "over.txt"), str(root / "a.txt")]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        replace_text(root, "two\n")
        assert (root.parent / "over.txt").read_text() == "two\n" and os.listdir(root) == ["a.txt"]
        assert call("edit", path="a.txt", old="two", new="x").startswith("error: a.txt can only be written in place")
    finally:
        subprocess.run(["umount", str(root / "a.txt")], check=True)
    assert (root / "a.txt").read_text() == "below\n"


def test_a_failed_write_in_place_gives_the_old_contents_back_or_says_where_they_are(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a.txt").write_text("mine\n")
    write = os.pwrite

    def busy(*args: object, **more: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    def full(fd: int, data: bytes, position: int) -> int:
        if len(data) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:-1], position)

    monkeypatch.setattr(os, "rename", busy)
    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", full)
        with pytest.raises(ToolError, match=r"a\.txt is damaged, writing it failed .* its old contents are in "):
            replace_text(root, "new contents\n")
    kept = list((root.parent / "backups").iterdir())
    assert [path.read_text() for path in kept] == ["mine\n"]
    (root / "a.txt").write_text("mine\n")
    calls = iter([OSError(errno.ENOSPC, "No space left on device")])

    def full_once(fd: int, data: bytes, position: int) -> int:
        for error in calls:
            raise error
        return write(fd, data, position)

    monkeypatch.setattr(os, "pwrite", full_once)
    with pytest.raises(ToolError, match=r"could not be written \(No space left on device\); it has its old contents"):
        replace_text(root, "new contents\n")
    assert (root / "a.txt").read_text() == "mine\n"


@needs_root
def test_where_no_file_can_be_made_the_file_is_written_in_place_or_the_refusal_says_why(root: Path) -> None:
    (root / "a.txt").write_text("one\n")
    os.chown(root / "a.txt", 4711, 4711)
    root.chmod(0o755)
    assert as_user(4711, root, lambda: replace_text(root, "two\n")) == ""  # the directory is root's
    assert (root / "a.txt").read_text() == "two\n" and (root / "a.txt").stat().st_uid == 4711
    (root / "a.txt").chmod(0o644)
    assert "a.txt cannot be written (Permission denied); it stays as it was" in as_user(
        4712, root, lambda: replace_text(root, "three\n")
    )
    os.chown(root, 4712, 4712)
    os.chown(root / "a.txt", 0, 0)
    (root / "a.txt").chmod(0o666)
    assert as_user(4712, root, lambda: replace_text(root, "three\n")) == ""  # a new file would be another owner's
    assert (root / "a.txt").read_text() == "three\n" and (root / "a.txt").stat().st_uid == 0


def as_user(uid: int, root: Path, action: Callable[[], None]) -> str:
    """What `action` says when it fails, in a child process of that user."""
    for directory in (root.parent, *root.parents):
        if not directory.stat().st_mode & 0o001:
            if directory.parent == Path("/"):
                pytest.skip(f"{directory} is closed to other users")
            directory.chmod(directory.stat().st_mode | 0o011)
    (root.parent / "backups").mkdir(exist_ok=True)
    (root.parent / "backups").chmod(0o777)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            action()
        except BaseException as e:
            said = repr(e)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said_by_child:
        text = said_by_child.read()
    os.waitpid(child, 0)
    return text
