"""Record training data: `python -m holdfast.agent.pocket.data`. Runs the oracle on many repositories and writes shards.

A shard is an .npz of episodes as tokens: `ids` int16, `mask` bool (what the model must produce), `offsets` int64
[episodes + 1] and `repo` int32 [episodes]. The tokenizer is trained first, on text of the same kind.
"""

import argparse
import json
import os
import random
from pathlib import Path

import numpy as np

from holdfast.agent.pocket.oracle import Episode, make_episode
from holdfast.agent.pocket.repos import Repo, source_files
from holdfast.agent.pocket.vocab import train_tokenizer
from holdfast.engine import Tokenizer

VOCAB_SIZE = 1536
TOOLS_TEXT = "Tools: read, outline, find_symbol, search, edit."
OPENING = [
    ("<｜begin▁of▁sentence｜>", True),
    ("You are holdfast, a coding agent. Use the tools to read and change the files of this workspace.", False),
    (f"\n\n{TOOLS_TEXT}", True),
]
SPECIAL_TOKENS = [
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>", "<think>",
    "</think>",
    "｜DSML｜", "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", '<｜DSML｜invoke name="', "</｜DSML｜invoke>",
    '<｜DSML｜parameter name="', '" string="true">', '" string="false">', "</｜DSML｜parameter>",
    "<tool_result>", "</tool_result>", "<｜begin▁sys｜>", "<｜end▁sys｜>", "<｜latest_reminder｜>", "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>", "<｜domain｜>", "<｜title｜>", "<｜read_url｜>",
    # whole stretches of a call: what a large model spells in ten tokens, pocket writes in one
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="', '">\n<｜DSML｜parameter name="',
    '</｜DSML｜parameter>\n<｜DSML｜parameter name="', "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
]  # fmt: skip
KINDS = {
    "where": 24, "missing_where": 5, "outline": 22, "missing_outline": 2, "uses": 20, "missing_uses": 3,
    "replace": 20, "missing_replace": 3, "read": 15, "missing_read": 3, "decline": 9, "hello": 2,
}  # fmt: skip


def assistant_text(answer: str) -> list[tuple[str, bool]]:
    return [(answer, False), ("<｜end▁of▁sentence｜>", True)]


def call_text(name: str, arguments: dict[str, object]) -> list[tuple[str, bool]]:
    """One tool call as the model must write it: (text, is_protocol) pieces, in the DSML of V4 spec 6.4."""
    pieces: list[tuple[str, bool]] = []
    before = f'\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="{name}">\n'
    for key, value in arguments.items():
        plain = isinstance(value, str)
        pieces.append((f'{before}<｜DSML｜parameter name="{key}" string="{str(plain).lower()}">', True))
        pieces.append((str(value) if plain else json.dumps(value), False))
        before = "</｜DSML｜parameter>\n"
    pieces.append((f"{before}</｜DSML｜invoke>\n</｜DSML｜tool_calls><｜end▁of▁sentence｜>", True))
    return pieces


class Renderer:
    """Episodes to tokens, exactly as the agent's loop would feed and receive them."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def encode(self, pieces: list[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        for text, is_protocol in pieces:
            ids += self.tokenizer.encode_protocol(text) if is_protocol else self.tokenizer.encode(text)
        return ids

    def episode(self, episode: Episode) -> tuple[list[int], list[bool]]:
        """Tokens of one turn from `<｜User｜>` to the last end of sentence, and which of them the model produces."""
        ids: list[int] = []
        mask: list[bool] = []

        def add(pieces: list[tuple[str, bool]], wanted: bool) -> None:
            new = self.encode(pieces)
            ids.extend(new)
            mask.extend([wanted] * len(new))

        add([("<｜User｜>", True), (episode.user, False), ("<｜Assistant｜></think>", True)], False)
        for call in episode.calls:
            add(call_text(call.name, call.arguments), True)
            result = [("<｜User｜><tool_result>", True), (call.output, False)]
            add([*result, ("</tool_result><｜Assistant｜></think>", True)], False)
        add(assistant_text(episode.answer), True)
        return ids, mask


def episodes_of(repo: Repo, count: int, rng: random.Random) -> list[Episode]:
    kinds, weights = list(KINDS), list(KINDS.values())
    made = (make_episode(rng.choices(kinds, weights)[0], repo, repo.split, rng) for _ in range(count))
    return [e for e in made if e is not None]


def make_tokenizer(path: Path, rng: random.Random) -> None:
    texts: list[str] = []
    for _ in range(60):
        with Repo("train", rng) as repo:
            for e in episodes_of(repo, 60, rng):
                texts += [e.user, e.answer, *(c.output for c in e.calls), *(c.name for c in e.calls)]
    files = [f for fs in source_files("train").values() for f in fs]
    texts += [f.read_text("utf-8", "ignore")[:3000] for f in rng.sample(files, 150)]
    train_tokenizer(texts, VOCAB_SIZE, SPECIAL_TOKENS, path)


def write_shard(path: Path, renderer: Renderer, repos: int, per_repo: int, rng: random.Random) -> int:
    ids: list[int] = []
    mask: list[bool] = []
    offsets, owner = [0], []
    for number in range(repos):
        with Repo("train", rng) as repo:
            if not repo.symbols:
                continue
            for e in episodes_of(repo, per_repo, rng):
                i, m = renderer.episode(e)
                if len(i) > 420:
                    continue
                ids += i
                mask += m
                offsets.append(len(ids))
                owner.append(number)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(
        temporary,
        ids=np.array(ids, np.int16),
        mask=np.array(mask),
        offsets=np.array(offsets),
        repo=np.array(owner, np.int32),
    )
    os.replace(temporary, path)
    return len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=Path(".runs/pocket"))
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--repos", type=int, default=60)
    parser.add_argument("--per-repo", type=int, default=110)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.run_dir.mkdir(parents=True, exist_ok=True)
    if not (args.run_dir / "tokenizer.json").exists():
        make_tokenizer(args.run_dir / "tokenizer.json", random.Random(0))
    renderer = Renderer(Tokenizer.from_dir(args.run_dir))
    for shard in range(args.shards):
        path = args.run_dir / f"shard-{args.seed}-{shard:03d}.npz"
        if not path.exists():
            tokens = write_shard(path, renderer, args.repos, args.per_repo, random.Random(args.seed * 1000 + shard))
            print(f"{path}: {tokens} tokens", flush=True)


if __name__ == "__main__":
    main()
