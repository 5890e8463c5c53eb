"""`holdfast model list`: every model that `--model` can name here, and what is missing for it."""

from collections.abc import Iterator
from pathlib import Path

from holdfast.agent.config import POCKET, POCKET_DIR
from holdfast.agent.models.remote.catalogue import FILE, endpoints
from holdfast.agent.models.remote.endpoint import Endpoint
from holdfast.agent.released import RELEASES

Row = dict[str, str]


def known_models(home: Path) -> Iterator[Row]:
    """Name, kind and state of each: pocket, the entries of models.toml, the released models. Raises UsageError."""
    is_there = (POCKET_DIR / "config.json").is_file()
    state = "the default; small: it finds, quotes and renames" if is_there else "missing from this installation"
    yield {"name": POCKET, "kind": "embedded", "state": state}
    entries = endpoints(home)
    for name, endpoint in entries.items():
        yield {"name": name, "kind": f"endpoint ({endpoint.api})", "state": _state(endpoint)}
    if not entries:
        address = "--model https://HOST/v1#MODEL"
        yield {"name": "(none)", "kind": "endpoint", "state": f"{address}, or an entry in {home / FILE}"}
    for release in RELEASES.values():
        yield {"name": release.name.lower(), "kind": "checkpoint", "state": release.how_to_get()}


def _state(endpoint: Endpoint) -> str:
    try:
        key = f"key of {endpoint.key_env}" if endpoint.key() else f"no key: {endpoint.key_env} is not set"
    except ValueError as e:
        key = str(e)
    return f"{endpoint.model} at {endpoint.url}, {endpoint.context:,} tokens, {key}"
