"""A whole conversation with the agent, as clients send it: its lines, their digests, and the prompt of its next turn.

Calls, results and reasoning are in the session, so they do not count here. Must not know sessions or responses.
"""

from holdfast.agent.server.json import Json, bad, unsupported
from holdfast.agent.server.responses.items import fingerprints

START = b"holdfast-agent"
IGNORED = ("reasoning", "mcp_call")  # of answers that come back
Line = tuple[str, str]  # role and text; a model's messages in a row are one line


def lines_of(items: list[Json]) -> list[Line]:
    """The lines of items. Raises ApiError for items that are not messages, and if the last one is the model's."""
    lines: list[Line] = []
    for number, item in enumerate(items):
        where = f"input[{number}]"
        if item["type"] in IGNORED:
            continue
        if item["type"] != "message":
            raise unsupported(f"{where}: the agent runs its own tools: send messages alone", where)
        text = "\n\n".join(part["text"] for part in item["content"])
        if item["role"] == "assistant" and lines and lines[-1][0] == "assistant":
            text = lines.pop()[1] + text
        if text or item["role"] != "assistant":
            lines.append((item["role"], text))
    if not lines or lines[-1][0] == "assistant":
        where = f"input[{max(0, len(items) - 1)}]"
        raise bad(f"{where}: end the input with a message of the user", where)
    return lines


def num_known(lines: list[Line]) -> int:
    """The number of lines up to the model's last one."""
    return max((number for number, (role, _) in enumerate(lines, 1) if role == "assistant"), default=0)


def digests(lines: list[Line], start: bytes = START) -> list[bytes]:
    """For each line the digest of all lines up to it."""
    return fingerprints(start, [{"role": role, "content": text} for role, text in lines])


def answer_of(output: list[Json]) -> list[Line]:
    """The lines that a response adds, as clients send them back."""
    texts = [part["text"] for item in output if item["type"] == "message" for part in item["content"]]
    return [("assistant", "".join(texts))] if any(texts) else []


def prompt_of(lines: list[Line]) -> str:
    """The lines as one text; with the role before each if the model's are among them."""
    if not num_known(lines):
        return "\n\n".join(text for _, text in lines)
    return "\n\n".join(f"{role}: {text}" for role, text in lines)
