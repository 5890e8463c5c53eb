"""What requests to an endpoint were, as it says: what it had cached, and what they cost by the user's prices.

Owns that nothing is guessed: what an endpoint does not say is told as not known, and prices are the user's alone.
"""

from collections.abc import Iterable

from holdfast.agent.events import Usage
from holdfast.agent.models.remote.endpoint import Endpoint
from holdfast.agent.models.remote.model import RemoteSequence, Reported

MILLION = 1_000_000
UNSAID = "the endpoint does not say what it had cached"
NOT_CACHED = "the endpoint had not cached it"


def settle(usage: Usage, seq: RemoteSequence) -> None:
    """Count the requests since the last time into a turn's usage. What the turn began with was cached or read again."""
    reports, seq.reports = seq.reports, []
    if not reports:
        return
    known = usage.from_memory + usage.from_disk + usage.prefilled_again
    first = reports[0]
    share = first.cached / first.input if first.cached is not None and first.input else 0.0
    cached = min(known, round(share * (known + usage.new)))
    usage.from_memory, usage.from_disk, usage.prefilled_again = cached, 0, known - cached
    usage.why = (UNSAID if first.cached is None else NOT_CACHED) if known > cached else None
    usage.requests = len(reports)
    usage.cost = cost(seq.endpoint, reports)


def cost(endpoint: Endpoint, reports: Iterable[Reported]) -> float | None:
    """By the entry's prices; None without them, and for a request that the endpoint says nothing of."""
    price_in, price_out = endpoint.price_in, endpoint.price_out
    if price_in is None or price_out is None:
        return None
    price_cached = price_in if endpoint.price_cached is None else endpoint.price_cached
    total = 0.0
    for report in reports:
        if report.input is None or report.output is None:
            return None
        cached = report.cached or 0
        total += (report.input - cached) * price_in + cached * price_cached + report.output * price_out
    return total / MILLION
