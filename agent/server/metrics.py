"""What the server counts, as Prometheus text, and how late its event loop is. Must not know where numbers come from.

By hand: prometheus_client takes 25 ms to import, and adds a `_created` series to each metric unless a switch of the
whole process is set.
"""

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from holdfast.agent.events import Usage

STALL_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 5.0)
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
CHECK_S = 0.01  # between looks at the event loop while something runs
IDLE_S = 0.25  # and while nothing does: an idle server wakes up seldom
ORIGINS = ("new", "from_memory", "from_disk", "prefilled_again")


class Histogram:
    """Seconds, in buckets."""

    def __init__(self, bounds_s: Sequence[float] = BUCKETS_S) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    def lines(self, name: str) -> Iterable[str]:
        total = 0
        for bound, num in zip((*map(str, self.bounds_s), "+Inf"), self.counts):
            total += num
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum_s:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """Counts since the server started."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # route, status
        self.responses: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.response_s, self.first_token_s = Histogram(), Histogram()
        self.loop_stall_s = Histogram(STALL_BUCKETS_S)

    def response_ended(self, status: str, seconds: float, usage: Usage) -> None:
        self.responses[status] += 1
        for origin in ORIGINS:
            self.tokens[origin] += getattr(usage, origin)
        self.tokens["output"] += usage.output_tokens
        self.response_s.add(seconds)
        if usage.output_tokens:
            self.first_token_s.add(usage.prefill_s)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All counts, and the gauges: what is measured now, by name."""
        lines = ["# TYPE holdfast_requests_total counter"]
        lines += [
            f'holdfast_requests_total{{route="{route}",status="{status}"}} {num}'
            for (route, status), num in sorted(self.requests.items())
        ]
        lines.append("# TYPE holdfast_responses_total counter")
        lines += [f'holdfast_responses_total{{status="{status}"}} {n}' for status, n in sorted(self.responses.items())]
        lines.append("# TYPE holdfast_tokens_total counter")
        lines += [f'holdfast_tokens_total{{origin="{o}"}} {self.tokens[o]}' for o in (*ORIGINS, "output")]
        histograms = {"response": self.response_s, "first_token": self.first_token_s, "loop_stall": self.loop_stall_s}
        for name, histogram in histograms.items():
            lines.append(f"# TYPE holdfast_{name}_seconds histogram")
            lines += histogram.lines(f"holdfast_{name}_seconds")
        for name, value in gauges.items():
            lines += [f"# TYPE holdfast_{name} gauge", f"holdfast_{name} {value:g}"]
        return "\n".join(lines) + "\n"


async def watch_loop(lateness: Histogram, is_busy: Callable[[], bool]) -> None:
    """Measure how late the event loop is, with sleeps while something runs. Ends when it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        sleep_s = CHECK_S if is_busy() else IDLE_S
        due = loop.time() + sleep_s
        await asyncio.sleep(sleep_s)
        if sleep_s == CHECK_S:
            lateness.add(max(0.0, loop.time() - due))
