"""Where machine code of CPU kernels is kept: it is run as it is, so only where no other user could write it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.kernels.cpu import jit

pytestmark = pytest.mark.skipif(not jit.AVAILABLE or sys.platform != "linux", reason="needs numba, and XDG_CACHE_HOME")
ROOT = Path(__file__).parents[2]
KEEP = (
    "import os; os.umask(int('{umask}', 8)); from holdfast.kernels.dispatch import jit;"
    " print(jit.keep_machine_code(), jit.num_stored(), sep='|')"
)
STRANGER = 12345


def kept(cache: Path, umask: str = "022") -> list[str]:
    """Why a new process keeps no machine code there, and how many kernels it found."""
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "NUMBA_CACHE_LOCATOR_CLASSES": "nosuch.Locator"}
    command = [sys.executable, "-c", KEEP.format(umask=umask)]
    return (
        subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout.strip().split("|")
    )


@pytest.mark.parametrize("umask", ["000", "777"])
def test_the_cache_is_the_user_s_alone_whatever_the_umask(tmp_path: Path, umask: str) -> None:
    assert kept(tmp_path / "new" / "cache", umask) == ["", "0"]
    (made,) = (tmp_path / "new" / "cache" / "holdfast").iterdir()
    assert [path.stat().st_mode & 0o777 for path in (made, *made.parents)[:4]] == [0o700] * 4


def test_a_cache_that_others_could_write_is_not_read_and_said(tmp_path: Path) -> None:
    tmp_path.joinpath("holdfast").mkdir()
    tmp_path.joinpath("holdfast").chmod(0o777)
    problem, found = kept(tmp_path)
    assert f"{tmp_path}/holdfast can be written by others: chmod go-w" in problem and found == "0"
    assert not list(tmp_path.glob("holdfast/*/*"))


def link_in_its_place(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def link_inside(path: Path) -> None:
    path.joinpath("code.nbi").symlink_to("/etc/passwd")


def foreign(*names: str) -> Callable[[Path], None]:
    def give(path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        path.joinpath("code.nbi").touch()
        os.chown(path.joinpath(*names), STRANGER, -1)

    return give


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.chmod(0o777),
        lambda path: path.chmod(0o1777),  # sticky: others can still add files
        lambda path: path.parent.chmod(0o757),
        link_in_its_place,
        link_inside,
        foreign(),
        foreign(".."),
        foreign("code.nbi"),
    ],
)
def test_every_way_for_others_to_put_code_there_is_found(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    directory = tmp_path / "holdfast" / "cpu-kernels-0"
    jit._make_private(directory)
    assert jit._why_not_trusted(directory) == ""
    spoil(directory)
    problem = jit._why_not_trusted(directory)
    assert (
        str(tmp_path) in problem and "\n" not in problem and any(way in problem for way in ("remove", "XDG_CACHE_HOME"))
    )
