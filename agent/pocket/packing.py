"""Rows of tokens for training: random copying tasks, and sessions packed from recorded episodes."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from holdfast.agent.pocket.data import OPENING, Renderer
from holdfast.agent.pocket.oracle import fact_value, recall, tell
from holdfast.agent.pocket.phrases import SUBJECTS
from holdfast.engine import Tokenizer

FIRST_ORDINARY_ID = 32  # special tokens stay below
FACT_SHARE = 0.2  # of turns that tell or ask for a fact


def copy_rows(rows: int, tokens: int, vocab: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Rows of random segments, of which later ones repeat earlier ones; the mask covers what can be predicted.

    Returns ids int64 and mask bool, both [rows, tokens]. The first two tokens of a repeat are not in the mask.
    """
    ids = torch.zeros(rows, tokens, dtype=torch.int64)
    mask = torch.zeros(rows, tokens, dtype=torch.bool)
    for r in range(rows):
        row: list[int] = []
        wanted: list[bool] = []
        past: list[list[int]] = []
        pool = [rng.randrange(FIRST_ORDINARY_ID, vocab) for _ in range(rng.choice([16, 40, 120, 600]))]
        while len(row) < tokens:
            if len(past) > 1 and rng.random() < 0.6:
                segment = rng.choice(past[-6:])
                wanted += [i >= 2 for i in range(len(segment))]
            else:
                segment = [rng.choice(pool) for _ in range(rng.randint(4, 14))]
                wanted += [False] * len(segment)
                past.append(segment)
            row += segment
        ids[r] = torch.tensor(row[:tokens])
        mask[r] = torch.tensor(wanted[:tokens])
    return ids, mask


class Packer:
    """Sessions of one repository each: the opening, then episodes in random order, often with a fact to recall.

    Short rows mostly leave the system prompt out: it would be a quarter of what they train.
    """

    def __init__(self, run_dir: Path, rng: random.Random):
        self.run_dir, self.rng = run_dir, rng
        self.renderer = Renderer(Tokenizer.from_dir(run_dir))
        self.opening = self.renderer.encode(OPENING)
        self.repos: list[list[tuple[np.ndarray, np.ndarray]]] = []
        self.loaded: set[Path] = set()
        self._load_new_shards()
        self.drawn = 0

    def _load_new_shards(self) -> None:
        for path in sorted(self.run_dir.glob("shard-*.npz")):
            if path in self.loaded or path.name.endswith(".tmp.npz"):
                continue
            with np.load(path) as data:
                ids, mask, offsets, owner = (data[k] for k in ("ids", "mask", "offsets", "repo"))
            groups: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
            for repo, start, end in zip(owner.tolist(), offsets[:-1].tolist(), offsets[1:].tolist()):
                groups.setdefault(repo, []).append((ids[start:end], mask[start:end]))
            self.repos += groups.values()
            self.loaded.add(path)

    def rows(self, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """ids int64 and mask bool, both [rows, tokens]; rows end in the middle of an episode when it does not fit."""
        self.drawn += 1
        if self.drawn % 200 == 0:
            self._load_new_shards()
        ids = torch.zeros(rows, tokens, dtype=torch.int64)
        mask = torch.zeros(rows, tokens, dtype=torch.bool)
        for r in range(rows):
            row, wanted = self._session(tokens)
            ids[r] = torch.from_numpy(row)
            mask[r] = torch.from_numpy(wanted)
        return ids, mask

    def _session(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        rng, repo = self.rng, self.rng.choice(self.repos)
        opening = self.opening if tokens > 256 or rng.random() < 0.25 else self.opening[:1]
        row = [np.array(opening, np.int64)]
        wanted = [np.zeros(len(opening), bool)]
        length = len(opening)
        facts: dict[str, str] = {}
        while length < tokens:
            ids, mask = self._fact(facts) if rng.random() < FACT_SHARE else rng.choice(repo)
            row.append(np.asarray(ids, np.int64))
            wanted.append(np.asarray(mask))
            length += len(ids)
        return np.concatenate(row)[:tokens], np.concatenate(wanted)[:tokens]

    def _fact(self, facts: dict[str, str]) -> tuple[list[int], list[bool]]:
        """A turn that tells a fact or asks for one, keeping `facts` up to date."""
        rng = self.rng
        if facts and rng.random() < 0.6:
            subject = rng.choice(list(facts))
            return self.renderer.episode(recall(subject, facts[subject], "train", rng))
        subject = rng.choice(SUBJECTS)
        if subject not in facts and rng.random() < 0.12:
            return self.renderer.episode(recall(subject, None, "train", rng))
        facts[subject] = fact_value("train", rng)
        return self.renderer.episode(tell(subject, facts[subject], "train", rng))
