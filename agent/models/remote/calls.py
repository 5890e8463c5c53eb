"""Calls put together from the pieces of a stream, whatever an endpoint does to their numbers and names.

Owns which piece belongs to which call. Must not know tools.
"""

import json
from dataclasses import dataclass
from typing import Any


@dataclass
class StreamedCall:
    """A call as far as it has come."""

    id: str
    index: object
    name: str = ""
    arguments: str = ""

    @property
    def is_whole(self) -> bool:
        try:
            return isinstance(json.loads(self.arguments), dict)
        except (ValueError, RecursionError):
            return False

    def as_message(self) -> dict[str, Any]:
        """As the encoding takes it; a call without arguments has an empty object of them."""
        return {"function": {"name": self.name, "arguments": self.arguments.strip() or "{}"}}


class StreamedCalls:
    """In the order in which they began.

    A piece with an id that came before is of that call, with another id it begins one. Without an id it is of the last
    call with its index, else of the last one; but a name after whole arguments begins another.
    """

    def __init__(self) -> None:
        self.calls: list[StreamedCall] = []

    def add(self, pieces: Any) -> None:
        """Take in `delta.tool_calls`, or `message.tool_calls`."""
        for piece in pieces if isinstance(pieces, list) else []:
            if isinstance(piece, dict):
                self._add(piece, piece.get("function"))

    def add_function(self, function: Any) -> None:
        """Take in a piece of the older form, which knows one call."""
        if isinstance(function, dict):
            self._add({"index": 0}, function)

    def _add(self, piece: dict[str, Any], function: Any) -> None:
        function = function if isinstance(function, dict) else {}
        name, arguments = function.get("name"), function.get("arguments")
        call = self._call(piece.get("id"), piece.get("index"), bool(name))
        if isinstance(name, str) and name != call.name:
            call.name += name
        if isinstance(arguments, str):
            call.arguments += arguments
        elif arguments is not None:
            call.arguments = json.dumps(arguments, ensure_ascii=False)

    def _call(self, id_: Any, index: Any, has_name: bool) -> StreamedCall:
        if id_:
            found = next((call for call in self.calls if call.id == id_), None)
        else:
            with_index = [call for call in self.calls if index is not None and call.index == index]
            found = next(reversed(with_index or self.calls), None)
            if found is not None and has_name and found.name and found.is_whole:
                found = None
        if found is None:
            found = StreamedCall(str(id_ or ""), index)
            self.calls.append(found)
        return found
