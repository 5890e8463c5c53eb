"""What one command may reach and use. Must not know which sandbox enforces it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

GIB = 2**30
# What a build or a test needs of its user's environment. Everything else may be a secret or the address of a service.
_PASSED = """
PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TERM COLORTERM NO_COLOR COLUMNS LINES EDITOR PAGER CI
VIRTUAL_ENV CONDA_PREFIX PYTHONPATH PYTHONDONTWRITEBYTECODE NODE_PATH NODE_ENV JAVA_HOME GOPATH GOROOT GOFLAGS
CARGO_HOME RUSTUP_HOME CC CXX CFLAGS CXXFLAGS LDFLAGS MAKEFLAGS PKG_CONFIG_PATH LD_LIBRARY_PATH OMP_NUM_THREADS
"""
PASSED = frozenset(_PASSED.split())
# Of the home directory: what lets its reader act as the user elsewhere.
CREDENTIALS = (
    ".ssh", ".gnupg", ".aws", ".azure", ".kube", ".config/gcloud", ".config/gh", ".config/hub", ".docker/config.json",
    ".netrc", ".git-credentials", ".config/git/credentials", ".pypirc", ".npmrc", ".cargo/credentials.toml",
    ".password-store", ".local/share/keyrings", ".mozilla", ".config/google-chrome", ".config/chromium",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a command and all that it starts may use; `file_bytes` is of each file, `open_files` of each process."""

    cpu_s: int = 3600
    memory_bytes: int = 8 * GIB
    processes: int = 512
    file_bytes: int = 4 * GIB
    open_files: int = 4096


@dataclass(frozen=True)
class Confinement:
    """What a command may reach.

    It writes to `workspace`, `writable` and `tmp`, its private directory for temporary files, which the caller makes,
    keeps between commands and removes. It sees nothing of `hidden`: the data directory and what else is ours. `passed`
    are names of environment variables that the user lets through besides PASSED.
    """

    workspace: Path
    tmp: Path
    hidden: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    network: bool = False
    limits: Limits = field(default_factory=Limits)
    passed: tuple[str, ...] = ()

    def all_hidden(self) -> tuple[Path, ...]:
        """Real paths of what is hidden and exists, the user's credentials among it."""
        home = Path.home()
        found = (path.resolve() for path in (*self.hidden, *(home / name for name in CREDENTIALS)) if path.exists())
        return tuple(dict.fromkeys(found))

    def environment(self, ours: Mapping[str, str], tmp: Path) -> dict[str, str]:
        """Of our variables those that a command gets, with `tmp` as its temporary directory, where caches go too."""
        kept = {k: v for k, v in ours.items() if k in PASSED or k in self.passed or k.startswith("LC_")}
        places = {"TMPDIR": str(tmp), "XDG_CACHE_HOME": str(tmp / "cache")}
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", **kept, **places}
