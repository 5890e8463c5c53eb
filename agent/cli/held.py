"""`holdfast sessions rewind|rm` on a session that the server of this data directory holds open: the server does it.

Says what `timelines` says. Must not touch the store: whoever has the session open writes to it.
"""

import argparse
import asyncio
import json
from typing import Any

from holdfast.agent.attach.discovery import Server
from holdfast.agent.attach.http import Connection
from holdfast.agent.cli.sessions import removed_lines, rewound_lines
from holdfast.agent.config import data_home
from holdfast.agent.terminal.sanitize import neutral


def run(args: argparse.Namespace, server: Server) -> int:
    """As `timelines.run`. Raises StoreError when the server refuses or does not answer."""
    value = asyncio.run(_ask(args, server))
    lines = removed_lines(value) if args.action_name == "rm" else rewound_lines(value)
    print(json.dumps(value) if args.json else "\n".join(map(neutral, lines)))
    return 0


async def _ask(args: argparse.Namespace, server: Server) -> dict[str, Any]:
    connection, path = Connection(data_home(), server), f"/v1/sessions/{args.name}"
    try:
        if args.action_name == "rm":
            return {"name": args.name, "freed_bytes": (await connection.call("DELETE", path))["freed_bytes"]}
        place = {"turn": args.turn, "token": args.token, "branch": args.branch}
        body = {name: number for name, number in place.items() if number is not None}
        after = await connection.call("POST", f"{path}/rewind", body)
        branches = (await connection.call("GET", path))["branches"]
        current = next(branch["id"] for branch in branches if branch["is_current"])
        return {
            "name": args.name,
            "branch": current,
            "turns": after["turns"],
            "tokens": after["tokens"],
            "files_changed": after["files_changed"],
        }
    finally:
        await connection.close()
