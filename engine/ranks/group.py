"""The other ranks of an engine, seen from rank 0: starts their processes, sends them messages, notices when one ends.

A rank hears of every change of its cache in the order in which it is sent: `step` (see `Runner`), `page`, `tail` and
`prefix`. Each has a socket; when rank 0 ends in any way its end closes, and they end too. When one of them ends, all
do, so that no request waits for a lost rank: each rank has a part of every layer.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from holdfast.engine.columns import Parallel
from holdfast.engine.errors import EngineError, RankLost
from holdfast.engine.numerics import Numerics
from holdfast.engine.placement import Placement
from holdfast.engine.ranks.messages import encode, receive, send
from holdfast.engine.settings import EngineConfig

ROOT = Path(__file__).parents[3]
LOST_ANOTHER = 3  # exit code of a rank that ended because another did
BLAME_S = 2  # such a rank waits so long for the other to be noticed
EXPLAIN_S = 10  # from a broken connection to knowing who broke it
END_S = 5


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    socket: socket.socket
    said: BinaryIO  # what it wrote to stderr
    reached: str = ""  # the last step of starting that it told: loaded, connected
    error: str = ""  # what it said before it ended


class Ranks:
    """Ranks 1 to `ranks` - 1. `on_lost` is called once, on another thread, with why the
    engine must end."""

    def __init__(
        self,
        directory: Path,
        config: EngineConfig,
        numerics: Numerics,
        threads: int,
        on_lost: Callable[[RankLost], None],
    ):
        self.ranks, self._on_lost = config.ranks, on_lost
        self._meeting = Path(tempfile.mkdtemp(prefix="holdfast-ranks-"))
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._lost: RankLost | None = None
        self._is_closing = False
        self._ranks: list[_Rank] = []
        self._watchers: list[threading.Thread] = []
        settings = {
            "ranks": self.ranks,
            "directory": str(directory.absolute()),
            "numerics": numerics.name,
            "threads": threads,
            "device": config.device,
            "page_tokens": config.page_tokens,
            "num_slots": config.max_sequences,
            "pinned_pages": config.pinned_pages,
        }
        try:
            for number in range(1, self.ranks):
                self._ranks.append(_started(number))
                send(self._ranks[-1].socket, "open", rank=number, **settings)
        except OSError as e:
            self.close()
            raise EngineError(f"rank {number} of {self.ranks} could not be started: {e}") from None
        self._watchers = [threading.Thread(target=self._watch, args=(rank,), daemon=True) for rank in self._ranks]
        for watcher in self._watchers:
            watcher.start()

    def connect(self, parallel: Parallel, placement: Placement, num_pages: int) -> None:
        """Wait until all have loaded, then meet them; each makes room for so many pages. Raises RankLost."""
        self._wait_for_all("loaded")
        meeting = self._meeting / "meeting"
        self.send("connect", {"meeting": str(meeting), "num_pages": num_pages})
        try:
            parallel.connect(meeting, placement)
        except RankLost as e:
            raise self.explain(e) from None
        self._wait_for_all("connected")
        shutil.rmtree(self._meeting, ignore_errors=True)  # they have read it: nothing stays behind, however this ends

    def _wait_for_all(self, reached: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._lost or all(rank.reached == reached for rank in self._ranks))
            if self._lost:
                raise self._lost

    def send(self, kind: str, fields: dict[str, Any], *arrays: np.ndarray) -> None:
        """Send a message to all ranks; each receives all messages in one order. Raises RankLost."""
        data = encode(kind, fields, arrays)
        try:
            with self._sending:
                for rank in self._ranks:
                    rank.socket.sendall(data)
        except OSError as e:
            raise self.explain(RankLost(f"a rank of {self.ranks} does not answer: {e}")) from None

    def explain(self, otherwise: RankLost) -> RankLost:
        """Which rank ended, and why; `otherwise` when that cannot be found out."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost or self._is_closing, EXPLAIN_S)
            return self._lost or otherwise

    def close(self) -> None:
        """End them all; none is left when this returns."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for rank in self._ranks:
            _shut(rank.socket)
        for rank in self._ranks:
            try:
                rank.process.wait(END_S)
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()
        for watcher in self._watchers:
            watcher.join()
        for rank in self._ranks:
            rank.socket.close()
            rank.said.close()
        shutil.rmtree(self._meeting, ignore_errors=True)

    def _watch(self, rank: _Rank) -> None:
        """Until the rank ends: what it says. Then say so, unless it was told to."""
        with rank.socket.makefile("rb") as stream:
            while (message := receive(stream)) is not None:
                with self._changed:
                    if message.kind == "error":
                        rank.error = message.fields["message"]
                    else:
                        rank.reached = message.kind
                    self._changed.notify_all()
        code = rank.process.wait()
        with self._changed:
            if code == LOST_ANOTHER:  # the rank that broke the connection is to be named
                self._changed.wait_for(lambda: self._lost or self._is_closing, BLAME_S)
            if self._lost or self._is_closing:
                return
            self._lost = RankLost(self._story(rank, code))
            self._changed.notify_all()
        for other in self._ranks:
            other.process.kill()
        self._on_lost(self._lost)

    def _story(self, rank: _Rank, code: int) -> str:
        why = rank.error or (f"signal {-code}, {_signal_name(-code)}" if code < 0 else _last_line(rank.said, code))
        return (
            f"rank {rank.number} of {self.ranks} ended ({why}), and the engine with it: sessions are kept as they were"
            " last saved; start again, or with fewer ranks if memory was short"
        )


def _started(number: int) -> _Rank:
    """A rank's process: it has one end of a socket, this side the other."""
    ours, theirs = socket.socketpair()
    said = tempfile.TemporaryFile()  # noqa: SIM115  it is closed with the rank
    # -P: a workspace that the program was started in must not provide modules
    command = [sys.executable, "-P", "-m", "holdfast.engine.ranks.process", str(theirs.fileno())]
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        pass_fds=[theirs.fileno()],
        process_group=0,  # an interrupt from the terminal is for rank 0
    )
    theirs.close()
    return _Rank(number, process, ours, said)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side has ended
        return


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _last_line(said: BinaryIO, code: int) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f"exit code {code}" + (f": {lines[-1][:300]}" if lines else "")
