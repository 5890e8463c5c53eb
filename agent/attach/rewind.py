"""Rewinds or removes a session that the server of this data directory holds open: the server does it.

Must not touch the store, which the server writes to. Errors are StoreErrors: the server refuses, or does not answer.
"""

from pathlib import Path
from typing import Any

from holdfast.agent.attach.discovery import Server
from holdfast.agent.attach.http import Connection
from holdfast.agent.session.restored import Part


async def remove(home: Path, server: Server, name: str) -> dict[str, Any]:
    """Returns the name and `freed_bytes`."""
    connection = Connection(home, server)
    try:
        return {"name": name, "freed_bytes": (await connection.call("DELETE", _path(name)))["freed_bytes"]}
    finally:
        await connection.close()


async def rewind(home: Path, server: Server, name: str, part: Part, **place: int | None) -> dict[str, Any]:
    """Go on from one `place`, a turn, token or branch; returns where that is, and the files that have changed since."""
    connection = Connection(home, server)
    try:
        body = {kind: number for kind, number in place.items() if number is not None} | {"part": part}
        after = await connection.call("POST", f"{_path(name)}/rewind", body)
        branches = (await connection.call("GET", _path(name)))["branches"]
        return {
            "name": name,
            "branch": next(branch["id"] for branch in branches if branch["is_current"]),
            "turns": after["turns"],
            "tokens": after["tokens"],
            **after["restored"],
        }
    finally:
        await connection.close()


def _path(name: str) -> str:
    return f"/v1/sessions/{name}"
