"""Train pocket: `python -m holdfast.agent.pocket.train`.

Resumable; every stage continues from the last checkpoint.

Stages, in order: `copy` (random tokens whose segments repeat: teaches copying), `short` (trajectories in rows of 256
tokens), `long` (rows of 512) and `final` (rows of 1,024, learning rate down to 2 %, weights and state rounded to the
official formats, attention through the indexer's selection, MTP block). `--steps` and `--minutes` bound a stage;
SIGTERM ends it after a checkpoint. Data: `python -m holdfast.agent.pocket.data` writes shards beside the checkpoint;
new shards are picked up.
"""

import argparse
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.agent.pocket import net as net_module
from holdfast.agent.pocket.muon import Muon
from holdfast.agent.pocket.net import Net, NetConfig, Tables
from holdfast.agent.pocket.packing import Packer, copy_rows
from holdfast.agent.pocket.qat import Rounding

RUN_DIR = Path(".runs/pocket")
MUON_FACTOR = 3.0  # Muon's learning rate over AdamW's: small matrices stand larger orthogonal steps


@dataclass(frozen=True)
class Stage:
    rows: int
    tokens: int
    copies: int = 0  # rows of random copying among them
    final: bool = False  # rounding, index selection, MTP loss, decaying learning rate


STAGES = {
    "copy": Stage(rows=16, tokens=256),
    "short": Stage(rows=16, tokens=256, copies=3),
    "long": Stage(rows=8, tokens=512),
    "final": Stage(rows=4, tokens=1024, final=True),
}


class Trainer:
    """Owns the network, its optimisers, the step counter and the checkpoint file."""

    def __init__(self, run_dir: Path, lr: float, compiled: bool):
        self.run_dir, self.lr = run_dir, lr
        torch.manual_seed(0)
        self.config = NetConfig()
        self.net = Net(self.config)
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name, p in self.net.named_parameters():
            stacked = p.ndim >= 2 and min(p.shape[-2:]) >= 32
            (matrices if stacked and name not in ("embed", "head") else rest).append(p)
        self.optimisers = [
            Muon(matrices, lr=lr, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.step = 0
        self.tokens = 0
        if compiled:
            self._compile()

    def _compile(self) -> None:
        """Compile per sublayer: the same few graphs serve every layer, so compiling takes about two minutes."""
        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.recompile_limit = 64
        net_module.hc_post = torch.compile(net_module.hc_post)
        for block in self.net.blocks:
            for part in (block.attn, block.ffn, block.hc_attn, block.hc_ffn):
                part.compile()

    @property
    def checkpoint(self) -> Path:
        return self.run_dir / "state.pt"

    def save(self) -> None:
        state = {
            "net": self.net.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "tokens": self.tokens,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.rename(self.checkpoint)

    def load(self) -> bool:
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, weights_only=True)
        self.net.load_state_dict(state["net"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        self.step, self.tokens = state["step"], state["tokens"]
        return True

    def train_step(self, ids: Tensor, mask: Tensor, stage: Stage, factor: float, tables: Tables) -> dict[str, float]:
        """ids, mask [rows, tokens]: mask marks tokens the model must produce. Returns the losses of this step."""
        rounding = Rounding(stage.final)
        X, index_loss = self.net.streams(ids, tables, rounding, select=stage.final)
        wanted = mask[:, 1:].nonzero(as_tuple=True)
        targets = ids[:, 1:][wanted]
        logits = self.net.reduce(X[:, :-1][wanted].unsqueeze(0))[0] @ rounding.bf16(self.net.head).t()
        loss = F.cross_entropy(logits, targets)
        total = loss + index_loss
        if stage.final:
            after = torch.roll(ids, -1, 1)
            mtp = self.net.mtp_logits(X.detach(), after, tables, rounding)[:, :-2]
            two_ahead = mask[:, 2:].nonzero(as_tuple=True)
            total = total + F.cross_entropy(mtp[two_ahead], ids[:, 2:][two_ahead])
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.lr * factor * (MUON_FACTOR if isinstance(optimiser, Muon) else 1)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for block in self.net.blocks:
                if block.ffn.gate_bias is not None:  # loss-free balancing (V3 report)
                    block.ffn.gate_bias += 1e-3 * torch.sign(block.ffn.load.mean() - block.ffn.load)
        right = (logits.detach().argmax(-1) == targets).float().mean()
        self.step += 1
        self.tokens += ids.numel()
        return {"loss": loss.item(), "index": index_loss.item(), "right": right.item(), "norm": float(norm)}


def run(trainer: Trainer, name: str, steps: int, minutes: float) -> None:
    """Train one stage until `steps` or `minutes` are over, or SIGTERM comes, saving every 100 steps."""
    stage, stop = STAGES[name], []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    tables = Tables(trainer.config, stage.tokens)
    rng = random.Random(trainer.step)
    packer = None if name == "copy" else Packer(trainer.run_dir, rng)
    log = (trainer.run_dir / "log.txt").open("a")
    started = time.time()
    sums: dict[str, float] = {}
    for i in range(steps):
        if packer is None:
            ids, mask = copy_rows(stage.rows, stage.tokens, trainer.config.vocab_size, rng)
        else:
            ids, mask = packer.rows(stage.rows - stage.copies, stage.tokens)
            if stage.copies:
                copied = copy_rows(stage.copies, stage.tokens, trainer.config.vocab_size, rng)
                ids, mask = torch.cat((ids, copied[0])), torch.cat((mask, copied[1]))
        progress = max(i / steps, (time.time() - started) / (60 * minutes))
        factor = max(0.02, 1 - progress) if stage.final else min(1.0, (trainer.step + 1) / 60)
        losses = trainer.train_step(ids, mask, stage, factor, tables)
        sums = {k: sums.get(k, 0.0) + v / 20 for k, v in losses.items()}
        if i % 20 == 19:
            speed = (i + 1) * stage.rows * stage.tokens / (time.time() - started)
            line = " ".join(f"{k} {v:.4f}" for k, v in sums.items())
            print(f"{name} step {trainer.step} tokens {trainer.tokens} {line} {speed:.0f} tok/s", file=log, flush=True)
            sums = {}
        last = bool(stop) or i == steps - 1 or progress >= 1
        if i % 100 == 99 or last:
            trainer.save()
        if last:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10_000.0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    args.run_dir.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args.run_dir, args.lr, compiled=not args.no_compile)
    resumed = trainer.load()
    print(f"{args.stage}: {'resumed at' if resumed else 'new,'} step {trainer.step}")
    run(trainer, args.stage, args.steps, args.minutes)


if __name__ == "__main__":
    main()
