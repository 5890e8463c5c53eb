"""A server under load: 200 WebSocket clients, 32 of them always asking.

Its event loop is never late for long, its memory stays, no client gets an error or is left behind.

`python -m tests.long.server_load [SECONDS]` (default 600): pocket in one process, the clients in another. How late the
loop is comes from the server's own /metrics. Exit code 1 when a bar is missed.
"""

import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.long.load_clients import Client, clients_process

ROOT = Path(__file__).parents[2]
NUM_CLIENTS, NUM_ACTIVE, NUM_WAKING = 200, 32, 8
WARM_UP_SHARE = 0.25  # of the time: what is kept in memory has its size by then
MOST_STALL_S = 0.050
MOST_GROWTH = 1.05  # of memory, from the first quarter after the warm-up to the last
LEAST_SHARE = 0.5  # of the mean, of the slowest active client
BUCKET = re.compile(r'holdfast_loop_stall_seconds_bucket\{le="([^"]+)"\} (\d+)')


@dataclass
class Server:
    """`holdfast serve` on an empty data directory."""

    home: Path
    process: "subprocess.Popen[str]" = field(init=False)
    url: str = field(init=False)
    token: str = field(init=False)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "holdfast.agent", "serve", "--port", "0"]
        env = {**os.environ, "HOLDFAST_HOME": str(self.home)}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1].removesuffix("/v1")
        self.token = (self.home / "token").read_text().strip()

    def stalls(self) -> dict[float, int]:
        """How often the loop was at most so many seconds late, since the start."""
        request = urllib.request.Request(f"{self.url}/metrics", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return {float(bound): int(num) for bound, num in BUCKET.findall(answer.read().decode())}

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory() as home:
        server = Server(Path(home))
        try:
            return _load(server, seconds)
        finally:
            server.process.terminate()
            server.process.wait()


def _load(server: Server, seconds: float) -> int:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    url = f"{server.url}/v1/responses"
    args = (theirs, url, server.token, NUM_CLIENTS, NUM_ACTIVE, NUM_WAKING, seconds)
    process = spawn.Process(target=clients_process, args=args)
    process.start()
    theirs.close()
    assert process.pid is not None
    ours.recv()
    pids, warm_s = (server.process.pid, process.pid), seconds * WARM_UP_SHARE
    memory: list[float] = []
    last: dict[float, int] = {}
    begun = time.monotonic()
    while time.monotonic() < begun + warm_s:
        time.sleep(0.5)
    stalls, cpu, measured_at = server.stalls(), [cpu_s(pid) for pid in pids], time.monotonic()
    while time.monotonic() < begun + seconds - 1:
        time.sleep(0.5)
        memory.append(server.resident_mb())
        if len(memory) % 120 == 0:
            now = server.stalls()
            late_s = quantile({bound: num - last.get(bound, 0) for bound, num in now.items()}, 0.999)
            last, others = now, os.getloadavg()[0]
            print(
                f"{time.monotonic() - begun:.0f} s: {memory[-1]:.0f} MB, p99.9 {late_s} s, machine's load {others:.1f}"
            )
    wall_s = time.monotonic() - measured_at
    shares = [(cpu_s(pid) - before) / wall_s for pid, before in zip(pids, cpu, strict=True)]
    after = server.stalls()
    clients = ours.recv()
    process.join()
    print(f"cores used: server {shares[0]:.2f}, clients {shares[1]:.2f} of {os.cpu_count()}")
    return report(clients, {bound: after[bound] - stalls[bound] for bound in after}, memory, seconds)


def report(clients: list[Client], stalls: dict[float, int], memory: list[float], seconds: float) -> int:
    """Prints what was seen and which bars it missed."""
    active = [client for client in clients if client.is_active]
    errors = [error for client in clients for error in client.errors]
    tokens = [client.num_tokens for client in active]
    first = sorted(s for client in clients for s in client.first_event_s)
    whole = sorted(s for client in active for s in client.response_s)
    stall_s = quantile(stalls, 0.999)
    quarter = max(1, len(memory) // 4)
    at_first, at_last = statistics.median(memory[:quarter]), statistics.median(memory[-quarter:])
    slowest = min(tokens) / max(1.0, statistics.mean(tokens))
    print(
        f"{sum(c.num_responses for c in clients)} responses, {sum(tokens) / seconds:.0f} tokens/s, {len(errors)} errors"
    )
    print(f"slowest active client: {slowest:.2f} of the mean of {statistics.mean(tokens):.0f} tokens")
    print(
        f"first event after {first[len(first) // 2]:.3f} s (p99 {first[len(first) * 99 // 100]:.3f}),"
        f" whole response {whole[len(whole) // 2]:.2f} s (p99 {whole[len(whole) * 99 // 100]:.2f})"
    )
    total = stalls[float("inf")]
    over = {bound: total - num for bound, num in stalls.items() if bound >= 0.01 and total > num}
    print(f"event loop late: p99 {quantile(stalls, 0.99)} s, p99.9 {stall_s} s of {total}; more often than {over}")
    print(f"memory: {at_first:.0f} MB after the warm-up, {at_last:.0f} MB at the end, at most {max(memory):.0f} MB")
    missed = [
        *(["errors: " + json.dumps(errors[:3])] if errors else []),
        *(["the event loop is late"] if stall_s > MOST_STALL_S else []),
        *(["memory grows"] if at_last > MOST_GROWTH * at_first else []),
        *(["a client is left behind"] if slowest < LEAST_SHARE else []),
    ]
    print("missed: " + "; ".join(missed) if missed else "all bars are met")
    return 1 if missed else 0


def quantile(counts: dict[float, int], share: float) -> float:
    """The lowest bound of a histogram that holds this share of what was counted."""
    return min(bound for bound, num in counts.items() if num >= share * counts[float("inf")])


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 600.0))
