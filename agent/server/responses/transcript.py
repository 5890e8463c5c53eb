"""A conversation with the agent as clients send it whole: who said what, the digests it is found by, the prompt of its turn.

The session keeps calls, results and reasoning itself, so they do not count here. Must not know sessions or responses.
"""

from holdfast.agent.server.json import Json, bad, unsupported
from holdfast.agent.server.responses.items import fingerprints

START = b"holdfast-agent"
IGNORED = ("reasoning", "mcp_call")  # of answers that come back
Line = tuple[str, str]  # role and text; a model's messages in a row are one line


def lines_of(items: list[Json]) -> list[Line]:
    """Raises ApiError for what an agent with its own tools cannot take, and where nothing waits for an answer."""
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
    """How many lines there are up to the model's last."""
    return max((number for number, (role, _) in enumerate(lines, 1) if role == "assistant"), default=0)


def digests(lines: list[Line], start: bytes = START) -> list[bytes]:
    """After each line, the digest of all up to it."""
    return fingerprints(start, [{"role": role, "content": text} for role, text in lines])


def answer_of(output: list[Json]) -> list[Line]:
    """What a response adds, as clients send it back."""
    texts = [part["text"] for item in output if item["type"] == "message" for part in item["content"]]
    return [("assistant", "".join(texts))] if any(texts) else []


def prompt_of(lines: list[Line]) -> str:
    """Lines as one text; where the model's own are among them, with who said what."""
    if not num_known(lines):
        return "\n\n".join(text for _, text in lines)
    return "\n\n".join(f"{role}: {text}" for role, text in lines)
