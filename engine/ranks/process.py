"""A rank's process, started by `group.py` with one end of a socket: `python -m holdfast.engine.ranks.process FD`.

It loads its part of the weights, keeps a cache of the same pages and slots as rank 0, and executes the messages of rank
0 in order. It ends at once when the other end of the socket closes, also in the middle of a message.
"""

import contextlib
import os
import select
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast.engine.batch import Step
from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.tensors import Checkpoint
from holdfast.engine.columns import Parallel
from holdfast.engine.errors import RankLost, StateError
from holdfast.engine.graphs import steps_of
from holdfast.engine.model import Model
from holdfast.engine.placement import place
from holdfast.engine.ranks.group import LOST_ANOTHER
from holdfast.engine.ranks.messages import Message, receive, send
from holdfast.engine.snapshot import place_page, place_tail
from holdfast.engine.state.cache import Cache
from holdfast.engine.state.pinned_prefix import PinnedPrefix
from holdfast.kernels.rows import Rows


class Rank:
    """One rank's model and cache; executes the messages of rank 0 on them."""

    def __init__(
        self,
        rank: int,
        ranks: int,
        directory: str,
        numerics: str,
        device: str,
        page_tokens: int,
        num_slots: int,
        pinned_pages: int,
        threads: int,
    ):
        torch.set_num_threads(threads)
        self.parallel, self.placement = Parallel(rank, ranks), place(device, rank)
        self.page_tokens, self.num_slots, self.pinned_pages = page_tokens, num_slots, pinned_pages
        checkpoint = Checkpoint.open(Path(directory), ModelConfig.from_dir(Path(directory)))
        self.model = Model(checkpoint, self.placement.numerics(numerics), self.placement, self.parallel)

    def connect(self, meeting: str, num_pages: int) -> None:
        """Meet the other ranks, and make room for the same pages and slots as rank 0."""
        model, size = self.model, self.page_tokens
        self.parallel.connect(Path(meeting), self.placement)
        self.cache = Cache(model.config, model.numerics, size, num_pages, self.num_slots, self.placement)
        self.compute = steps_of(model, self.cache)
        self._prefix_tokens = self.pinned_pages * size
        self._prefixes: dict[int, PinnedPrefix] = {}

    @torch.inference_mode()
    def do(self, message: Message) -> None:
        fields, arrays = message.fields, message.arrays
        if message.kind == "connect":
            self.connect(**fields)
        elif message.kind == "step":
            self._step(*arrays)
        elif message.kind == "prefix":
            self.model.move_prefix(self._prefix(fields["slot"]), fields["pages"], fields["first"], self.cache)
        else:
            try:
                self._place(message.kind, arrays[0].tobytes(), **fields)
            except StateError:  # rank 0 finds the same in the same bytes, and will not use what was to be here
                return

    def _prefix(self, slot: int) -> PinnedPrefix:
        """Rank 0 has one per sequence. One per slot is enough here: a slot's next sequence writes all that is read."""
        if slot not in self._prefixes:
            self._prefixes[slot] = PinnedPrefix.empty(self.cache, self._prefix_tokens)
        return self._prefixes[slot]

    def _step(self, *arrays: np.ndarray) -> None:
        ids, positions, starts, slots, dropped, pages, prefixes, logit_rows = arrays
        rows = Rows(ids, positions, starts, slots, dropped, pages, self.cache.page_tokens)
        pinned = []
        for start, stop in prefixes.tolist():
            prefix = self._prefix(int(slots[np.searchsorted(starts, start)]))
            pinned.append((prefix, prefix.rows_of(rows, start, stop)))
        self.compute(Step(rows, pinned, self.model.ops), logit_rows)

    def _place(self, kind: str, data: bytes, slot: int, **place: Any) -> None:
        if kind == "page":
            place_page(self.cache, data=data, prefix=self._prefix(slot), **place)
        else:
            place_tail(self.cache, slot, data=data, prefix=self._prefix(slot), **place)


def serve(connection: socket.socket) -> int:
    """Execute the messages of rank 0 until it has ended; returns the exit code."""
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    try:
        with connection.makefile("rb") as stream:
            if (opened := receive(stream)) is None:
                return 0
            rank = Rank(**opened.fields)
            send(connection, "loaded")
            while (message := receive(stream)) is not None:
                rank.do(message)
                if message.kind == "connect":
                    send(connection, "connected")
            return 0
    except Exception as e:  # rank 0 reports it to the requests
        with contextlib.suppress(OSError):
            send(connection, "error", message=f"{type(e).__name__}: {e}")
        return LOST_ANOTHER if isinstance(e, RankLost) else 1


def _end_with(connection: socket.socket) -> None:
    """Wait until the other end is closed."""
    closing = select.poll()
    closing.register(connection, 0)  # a hang-up is always told
    closing.poll()
    os._exit(0)


if __name__ == "__main__":
    # no destructors: those of a group whose other ranks are gone may wait
    os._exit(serve(socket.socket(fileno=int(sys.argv[1]))))
