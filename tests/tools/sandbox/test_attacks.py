"""Promises against a command that means harm: what it tries is asserted on the machine, not on what it says.

Without a sandbox only the promises of `test_process.py` hold.
"""

import http.server
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.sandbox.place import Place, sandboxed

# Python with what most attacks need; each prints `done` where it succeeds
PROBE = "import ctypes, os, socket, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@pytest.fixture(params=["bubblewrap", "landlock"])
def place(request: pytest.FixtureRequest, root: Path) -> Place:
    """Never without a sandbox: these attacks would harm the machine."""
    return sandboxed(request.param, root)


def probe(place: Place, script: str) -> str:
    return place.run("python3", "-c", PROBE + script)[1]


@pytest.fixture
def outside(place: Place) -> Path:
    """A directory that is not the workspace, beside it, whose name starts with its name."""
    path = place.root / "work-outside"
    path.mkdir()
    (path / "file").write_text("before")
    return path


def git(place: Place, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(place.confinement.workspace), *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(place: Place) -> Path:
    git(place, "init", "-q")
    git(place, "config", "user.email", "a@b")
    git(place, "config", "user.name", "a")
    return place.confinement.workspace / ".git"


def test_only_the_workspace_and_the_temporary_directory_are_written(place: Place, outside: Path) -> None:
    scripts = [
        "echo x > ../work-outside/file", f"echo x > {outside}/new", f"rm {outside}/file", f"mkdir {outside}/d",
        f"ln -s {outside} link; echo x > link/file", f"ln {outside}/file hard && echo x > hard",
        f"mv {outside}/file here", f"truncate -s 0 {outside}/file", "echo x > ../work-outside-new",
        f"cp file {outside}/new2; echo x > {place.root}/new3", f"echo x >> {Path.home()}/.holdfast-test",
        f"python3 -c 'import os; os.truncate(\"{outside}/file\", 0)'",
        f"python3 -c 'import os; os.rename(\"own\", \"{outside}/own\")'",
        "echo x > /holdfast-test; echo x > /etc/holdfast-test; echo x > /usr/holdfast-test",
    ]  # fmt: skip
    place.sh(
        "echo own > own; mkdir made; : > made/deep; mv made/deep deep; cp own $TMPDIR/own && echo kept > $TMPDIR/kept"
    )
    place.sh("; ".join(f"({script})" for script in scripts))
    assert [path.name for path in outside.iterdir()] == ["file"] and (outside / "file").read_text() == "before"
    assert sorted(path.name for path in place.root.iterdir()) == ["data", "tmp", "work", "work-outside"]
    assert not (Path.home() / ".holdfast-test").exists()
    assert not any(Path(top, "holdfast-test").exists() for top in ("/", "/etc", "/usr"))
    assert (place.confinement.workspace / "own").read_text() == "own\n" and (place.root / "tmp/kept").exists()
    assert (place.confinement.workspace / "deep").exists()


def test_a_link_that_is_swapped_does_not_lead_outside(place: Place, outside: Path) -> None:
    probe(place, f"""
import threading
os.mkdir("real")
def swap():
    for _ in range(2000):
        os.symlink("{outside}", "t"); os.replace("t", "p"); os.symlink("real", "t"); os.replace("t", "p")
thread = threading.Thread(target=swap); thread.start()
while thread.is_alive():
    try: open("p/file", "w").write("changed")
    except OSError: pass
""")  # fmt: skip
    assert (outside / "file").read_text() == "before"


def test_our_own_files_are_neither_read_nor_written(place: Place) -> None:
    data = place.root / "data"
    for name in ("token", "holdfast.db", "rules.toml"):
        (data / name).write_text("a-secret")
    place.allow(hidden=(data, place.root / "one-file"))
    (place.root / "one-file").write_text("a-secret")
    _, seen = place.sh(f"""
cat {data}/* {place.root}/one-file ../data/token; cp -r {data} copy; cat copy/*; ln {data}/token t && cat t
tar c {data} | cat; cat /proc/self/root{data}/token; cat /proc/1/root{data}/token; ln -s {data} l; cat l/token
cd {data} && cat token; echo x > {data}/holdfast.db; rm -f {data}/token; mv {data} {data}2
grep -r a-secret {place.root} /proc/self/root{place.root}; umount {data}; cat {data}/token
""")  # fmt: skip
    assert "a-secret" not in seen
    assert [(data / name).read_text() for name in ("token", "holdfast.db", "rules.toml")] == ["a-secret"] * 3


def test_credentials_of_the_user_are_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place.root / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/id").write_text("a-secret")
    (home / ".netrc").write_text("a-secret")
    (home / ".bashrc").write_text("before")
    monkeypatch.setenv("HOME", str(home))
    _, seen = place.sh("cat ~/.bashrc ~/.ssh/id ~/.netrc; echo x >> ~/.bashrc; echo k >> ~/.ssh/authorized_keys")
    assert "a-secret" not in seen and (place.root.is_relative_to("/tmp") or seen.startswith("before"))
    assert (home / ".bashrc").read_text() == "before" and len(list((home / ".ssh").iterdir())) == 1


def what_git_runs(directory: Path) -> dict[str, str]:
    """Content of hooks and configuration, by name."""
    paths = [
        *directory.glob("config*"),
        *directory.glob("commondir"),
        *directory.glob("hooks"),
        *directory.glob("hooks/*"),
    ]
    links = {path.name: os.readlink(path) for path in paths if path.is_symlink()}
    return links | {path.name: path.read_text() for path in paths if path.is_file() and not path.is_symlink()}


@pytest.mark.parametrize(
    "script",
    [
        "echo x >> .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit",
        "git config core.fsmonitor 'touch pwned'",
        "printf '[core]\\nfsmonitor = touch pwned\\n' > c; mv -f c .git/config; cp c .git/config.worktree",
        "rm -rf .git/hooks; mkdir evil; echo x > evil/pre-commit; ln -s ../evil .git/hooks",
        "mv .git/hooks .git/h; mkdir .git/hooks; echo x > .git/hooks/post-checkout",
        "mv .git .moved; mkdir -p .git/hooks; cp .moved/HEAD .git; echo x > .git/config; echo x > .git/hooks/a",
        "mv .git .moved; ln -s .moved .git; echo x >> .git/config",
        "mkdir -p evil; cp -r .git/. evil; echo '[core]' >> evil/config; echo ../evil > .git/commondir",
        "printf '[alias]\\nx = !touch pwned\\n' >> included",
    ],
)
def test_hooks_and_configuration_of_git_stay(place: Place, repository: Path, script: str) -> None:
    workspace = place.confinement.workspace
    git(place, "config", "include.path", "../included")
    (workspace / "included").write_text("[alias]\n")
    before = what_git_runs(repository)
    place.sh(script)
    place.sh(script)
    assert what_git_runs(repository) == before and not repository.is_symlink()
    assert (workspace / "included").read_text() == "[alias]\n"
    subprocess.run(["git", "-C", str(workspace), "status"], capture_output=True)
    assert not (workspace / "pwned").exists()


def test_git_still_commits(place: Place, repository: Path) -> None:
    ended, output = place.sh(
        "echo a > a && git add a && git commit -qm one && git branch b && git log --oneline && git gc -q"
    )
    assert ended.code == 0 and "one" in output, output


def test_repositories_below_and_submodules_are_kept(place: Place, repository: Path) -> None:
    workspace = place.confinement.workspace
    git(place, "init", "-q", "below/deeper")
    (repository / "modules").mkdir()
    git(place, "init", "-q", "--separate-git-dir", str(repository / "modules/m"), "m")
    kept = [workspace / "below/deeper/.git/config", repository / "modules/m/config"]
    before = [path.read_text() for path in [*kept, workspace / "m/.git"]]
    place.sh("for f in below/deeper/.git/config .git/modules/m/config m/.git; do echo x >> $f; done")
    assert [path.read_text() for path in [*kept, workspace / "m/.git"]] == before


def test_a_worktree_commits_and_its_repository_is_kept(place: Place, repository: Path) -> None:
    git(place, "commit", "-q", "--allow-empty", "-m", "zero")
    tree = place.root / "tree"
    git(place, "worktree", "add", "-q", str(tree))
    place.allow(workspace=tree)
    before = (repository / "config").read_text()
    ended, output = place.sh("echo a > a && git add a && git commit -qm one")
    place.sh(f"echo x >> {repository}/config; echo x > {repository}/hooks/pre-commit; echo x > ../work/file")
    assert ended.code == 0, output
    assert (repository / "config").read_text() == before and not (repository / "hooks/pre-commit").exists()
    assert not (place.root / "work/file").exists()


def test_a_file_that_names_a_directory_as_gits_gains_nothing(place: Place, outside: Path) -> None:
    (place.confinement.workspace / ".git").write_text(f"gitdir: {outside}\n")
    place.sh(f"echo x > {outside}/file")
    assert (outside / "file").read_text() == "before"


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user, with a secret in its environment."""
    process = subprocess.Popen(["sleep", "1000"], env={"SECRET": "a-secret", "PATH": os.environ["PATH"]})
    yield process
    assert process.poll() is None
    process.kill()
    process.wait()


def test_other_processes_are_neither_read_nor_signalled(place: Place, victim: subprocess.Popen[bytes]) -> None:
    seen = probe(place, f"""
for pid in ({victim.pid}, {os.getpid()}, os.getppid(), 1):
    for name in ("environ", "mem", "maps", "root/etc/passwd", "cwd/x"):
        try: print(open(f"/proc/{{pid}}/{{name}}", "rb").read(100000))
        except (OSError, OverflowError): pass
for pid in ({victim.pid}, {os.getpid()}):
    for signal in (0, 15, 9):
        try: os.kill(pid, signal); print("done", pid, signal)
        except OSError: pass
    if libc.ptrace(16, pid, 0, 0) == 0: print("done ptrace")
    buffer = ctypes.create_string_buffer(64)
    if libc.syscall(310, pid, buffer, 1, buffer, 1, 0) >= 0: print("done vm")
""")  # fmt: skip
    assert "a-secret" not in seen and "done" not in seen, seen


def test_a_command_cannot_end_the_supervisor(place: Place) -> None:
    ended, _ = place.sh("kill -9 $PPID; kill -9 -1; sleep 0.1; echo alive > alive")
    assert ended.failure == "" and ended.code is not None


def _reach(place: Place, script: str) -> str:
    return probe(place, f"""
try:
{chr(10).join("    " + line for line in script.splitlines())}
    print("done")
except OSError as e: print(e)
""")  # fmt: skip


def test_nothing_on_the_network_is_reached(place: Place) -> None:
    heard: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    udp.setblocking(False)
    port = server.server_address[1]
    try:
        assert "done" not in _reach(
            place, f"socket.create_connection(('127.0.0.1', {port})).send(b'GET /x HTTP/1.0\\n\\n')"
        )
        assert "done" not in _reach(place, "socket.create_connection(('169.254.169.254', 80), 1)")
        _reach(place, f"socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {udp.getsockname()[1]}))")
        _reach(place, f"socket.socket(10, 2).sendto(b'x', ('::ffff:127.0.0.1', {udp.getsockname()[1]}))")
        with pytest.raises(BlockingIOError):
            udp.recv(10)
        for family in (17, 38, 40):  # packets, kernel cryptography, the hypervisor
            assert "done" not in _reach(
                place, f"socket.socket({family}, 3 if {family} == 17 else 5 if {family} == 38 else 1)"
            )
        assert heard == []
    finally:
        server.shutdown()
        server.server_close()
        udp.close()


def test_sockets_of_services_are_not_reached(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)  # a socket's path is short
    for address in (f"\0holdfast-test-{os.getpid()}", "service"):
        with socket.socket(socket.AF_UNIX) as service:
            service.bind(address)
            service.listen()
            service.setblocking(False)
            assert "done" not in _reach(
                place, f"socket.socket(1).connect({address!r} if {address!r}[0] == '\0' else '../service')"
            )
            with pytest.raises(BlockingIOError):
                service.accept()


def test_the_network_can_be_allowed(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place.allow(network=True)
        assert "done" in _reach(place, f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))")


CALLS = {
    "user namespace": "libc.unshare(0x10000000)",
    "mount namespace": "libc.unshare(0x20000)",
    "clone into a user namespace": "os._exit(0) if (made := libc.syscall(56, 0x10000011, 0, 0, 0, 0)) == 0 else made",
    "clone3": "libc.syscall(435, ctypes.create_string_buffer(88), 88)",
    "mount": "libc.mount(b'none', b'/mnt', b'tmpfs', 0, None)",
    "remount": "libc.mount(None, b'/', None, 0x20 | 0x1000, None)",
    "bind": "libc.mount(b'..', b'.', None, 0x1000, None)",
    "umount": "libc.umount2(b'/proc', 2)",
    "open_tree": "libc.syscall(428, -100, b'/', 1)",
    "fsopen": "libc.syscall(430, b'tmpfs', 0)",
    "chroot": "libc.chroot(b'.')",
    "pivot_root": "libc.syscall(155, b'.', b'.')",
    "io_uring": "libc.syscall(425, 8, ctypes.create_string_buffer(120))",
    "keyctl": "libc.syscall(250, 0, -3, 0)",
    "add_key": "libc.syscall(248, b'user', b'x', b'y', 1, -3)",
    "bpf": "libc.syscall(321, 0, ctypes.create_string_buffer(128), 128)",
    "userfaultfd": "libc.syscall(323, 1)",
    "perf_event_open": "libc.syscall(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)",
    "open_by_handle_at": "libc.syscall(304, -100, ctypes.create_string_buffer(128), 0)",
    "setns": "libc.setns(os.open('/proc/self/ns/net', 0), 0)",
    "reboot": "libc.syscall(169, 0, 0, 0, 0)",
    "x32": "libc.syscall(0x40000000 | 39)",
    "ptrace of a child": "libc.ptrace(0, 0, 0, 0)",
    "sethostname": "libc.sethostname(b'x', 1)",
    "terminal input": "-1 if not os.path.exists('/dev/ptmx') else libc.ioctl(0, ctypes.c_ulong(0x5412), b'x')",
    "terminal input with high bits": "libc.ioctl(0, ctypes.c_ulong(0xf00005412), b'x')",
    "a device": "libc.mknod(b'dev', 0o20666, 0x103)",
    "a block device": "libc.mknod(b'blk', 0o60666, os.stat(os.getcwd()).st_dev)",
    "capability": "libc.prctl(47, 2, 21, 0, 0)",
    "other user": "libc.setuid(12345)",
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are those of x86-64")
def test_calls_that_break_out_are_refused(place: Place) -> None:
    lines = [
        f"try: print({name!r}, 'done' if ({call}) >= 0 else 'refused', ctypes.get_errno())\n"
        f"except OSError as e: print({name!r}, 'refused', e)"
        for name, call in CALLS.items()
        if not (name == "other user" and os.getuid())
    ]
    output = probe(place, "\n".join(lines))
    assert len(output.splitlines()) >= len(lines)
    assert [line for line in output.splitlines() if "done" in line] == []


def test_devices_and_the_kernel_are_not_written(place: Place) -> None:
    _, seen = place.sh("""
for f in /proc/sys/kernel/core_pattern /proc/sys/vm/swappiness /proc/sysrq-trigger /sys/power/state; do
  (: >> $f) 2>/dev/null && echo done $f
done
for d in /dev/vda /dev/sda /dev/nvme0n1 /dev/mem /dev/kmsg /dev/vsock /dev/kvm /dev/fuse /dev/net/tun; do
  (: < $d) 2>/dev/null && echo done $d
done
mkdir /sys/fs/cgroup/pids/holdfast-test && echo done mkdir
for d in /dev/null /dev/zero /dev/urandom; do [ -c $d ] || echo done missing $d; (: < $d) || echo done $d; done
""")  # fmt: skip
    assert "done" not in seen, seen


def test_a_program_that_raises_rights_raises_none(place: Place) -> None:
    """Such as sudo, which belongs to root."""
    _, seen = place.sh("grep -E 'NoNewPrivs|CapPrm|CapEff|Seccomp:' /proc/self/status")
    assert seen.split() == ["CapPrm:", "0" * 16, "CapEff:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2"]


def test_no_file_of_ours_stays_open_in_a_command(place: Place) -> None:
    _, seen = place.sh("ls /proc/self/fd")
    assert set(seen.split()) <= {"0", "1", "2", "3"}  # 3 is the directory that ls reads


def test_files_of_other_programs_in_the_temporary_directory_are_not_seen(place: Place) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", dir="/tmp") as file:
        file.write("a-secret")
        file.flush()
        assert "a-secret" not in place.sh(f"cat {file.name}; cat /tmp/*")[1]


def test_a_bubblewrap_in_the_workspace_is_not_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = place.confinement.workspace
    (workspace / "bin").mkdir()
    for path in (workspace / "bwrap", workspace / "bin/bwrap"):
        path.write_text(
            f'#!/bin/sh\ntouch {place.root}/pwned\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'
        )
        path.chmod(0o755)
    (place.root / "elsewhere").symlink_to(workspace / "bin")
    entries = [".", "", str(workspace / "bin"), str(place.root / "elsewhere"), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(entries))
    monkeypatch.chdir(workspace)
    assert place.sh("exit 4")[0].code == 4
    assert not (place.root / "pwned").exists()
