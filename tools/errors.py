"""How a tool refuses a call, and how a call is told to end. Must not know what a tool is."""

import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class ToolError(Exception):
    """A refusal that the model should read: one line naming the thing, the value and the way out."""


class Cancellation:
    """The caller's wish for a call to end without a result; set from another thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise ToolError once it is set. What may run for long calls this every tenth of a second."""
        if self._event.is_set():
            raise ToolError("cancelled")

    def checked(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, with a check before each."""
        for item in items:
            self.check()
            yield item
