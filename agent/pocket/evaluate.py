"""How good is pocket: `python -m holdfast.agent.pocket.evaluate`. Held-out tasks, end to end through `holdfast run`.

Every task runs the real command in its own process on a repository of held-out packages or held-out words, with
held-out phrasings. A task is right when the answer equals the oracle's, word for word, and (for edits) the file on
disk is what the oracle's edit made of it. A fact is told in one run, other tasks follow in the same session, and it
is asked for in a later run. Calls that no tool accepted (unknown name, wrong arguments, broken block) are counted.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from holdfast.agent.pocket.oracle import Episode, fact_value, make_episode, recall, tell
from holdfast.agent.pocket.phrases import SUBJECTS
from holdfast.agent.pocket.repos import Repo

KINDS = {
    "where": 20,
    "missing_where": 5,
    "outline": 13,
    "missing_outline": 3,
    "uses": 13,
    "missing_uses": 4,
    "replace": 16,
    "missing_replace": 3,
    "read": 13,
    "missing_read": 3,
    "decline": 7,
    "recall": 8,
}
# What `tools.run_tool` and the loop answer to a call that no tool took.
REFUSED = re.compile(
    r"error: (no tool |arguments of |\w+ needs argument |\w+ has no argument |\w+: .* is wrong: |.*malformed)"
)


@dataclass(frozen=True)
class Outcome:
    kind: str
    right: bool
    refused_calls: int
    user: str
    expected: str
    got: str


def holdfast_run(prompt: str, workspace: Path, home: Path, model: str, fresh: bool) -> tuple[str, int]:
    """One `holdfast run --json`; returns (answer, number of calls that no tool accepted)."""
    command = [sys.executable, "-m", "holdfast.agent", "run", prompt, "--workspace", str(workspace), "--json"]
    command += ["--approve", "edit", "--model", model, *(["--new"] if fresh else [])]
    env = {**os.environ, "HOLDFAST_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, timeout=300)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    text = next((e["text"] for e in events if e["type"] == "turn_done"), f"(no answer: {done.stderr.strip()})")
    results = [e["output"] for e in events if e["type"] == "tool_result" and not e["ok"]]
    return text, sum(REFUSED.match(output) is not None for output in results)


def run_task(kind: str, seed: int, model: str) -> Outcome:
    rng = random.Random(seed)
    with Repo("test", rng) as repo, tempfile.TemporaryDirectory(prefix="pocket-home-") as home:
        episode: Episode | None = None
        refused = 0
        if kind == "recall":
            subject, value = rng.choice(SUBJECTS), fact_value("test", rng)
            told = tell(subject, value, "test", rng)
            refused += holdfast_run(told.user, repo.root, Path(home), model, True)[1]
            for _ in range(rng.randint(0, 2)):
                between = make_episode(rng.choice(["where", "uses", "decline"]), repo, "test", rng)
                assert between is not None
                refused += holdfast_run(between.user, repo.root, Path(home), model, False)[1]
            episode = recall(subject, value, "test", rng)
        while episode is None:
            episode = make_episode(kind, repo, "test", rng)
        got, calls = holdfast_run(episode.user, repo.root, Path(home), model, kind != "recall")
        right = got.strip() == episode.answer
        if "content" in episode.check:
            right = right and Path(repo.root, str(episode.check["path"])).read_text("utf-8") == episode.check["content"]
        return Outcome(kind, right, refused + calls, episode.user, episode.answer, got)


def report(outcomes: list[Outcome]) -> dict[str, object]:
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for o in outcomes:
        by_kind[o.kind].append(o.right)
    return {
        "tasks": len(outcomes),
        "right": sum(o.right for o in outcomes),
        "share": round(sum(o.right for o in outcomes) / len(outcomes), 4),
        "refused_calls": sum(o.refused_calls for o in outcomes),
        "kinds": {k: {"tasks": len(v), "right": sum(v)} for k, v in sorted(by_kind.items())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--failures", action="store_true", help="print every wrong answer")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    plan = [
        (k, args.seed * 100_000 + i) for i, k in enumerate(rng.choices(list(KINDS), list(KINDS.values()), k=args.tasks))
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = list(pool.map(lambda task: run_task(task[0], task[1], args.model), plan))
    if args.failures:
        for o in outcomes:
            if not o.right:
                print(json.dumps(o.__dict__, ensure_ascii=False), file=sys.stderr)
    print(json.dumps(report(outcomes), indent=1))


if __name__ == "__main__":
    main()
