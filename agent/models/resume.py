"""A sequence for a token log: on the longest stored state that can be read; and where the input of a request came from.

Owns what happens when stored state cannot be read: it is told, and computed again. That costs prefill, never history.
Must not know sessions nor responses.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items

from holdfast.agent.events import Usage
from holdfast.agent.models.model import Stateful
from holdfast.agent.models.snapshots import UNREADABLE, Snapshots
from holdfast.engine import EngineError, Roll, Sequence, Stored
from holdfast.memory import StoreError


class Resume:
    """`tell` gets a line for each state that could not be read."""

    def __init__(self, model: Stateful, snapshots: Snapshots, tell: Callable[[str], None]):
        self._model, self._snapshots, self._tell = model, snapshots, tell

    async def loaded(self, seq: Sequence) -> Sequence | None:
        """The sequence with its state in memory. None, and released, when that cannot be read: if it is damaged it is
        not found again."""
        try:
            await self._model.load(seq)
            return seq
        except (*UNREADABLE, StoreError) as e:
            self._tell(f"{e}; what it held is read again from the token log")
            if isinstance(e, UNREADABLE):
                await self._snapshots.forget(e, seq.stored)
        except BaseException:
            await self._model.release(seq)
            raise
        await self._model.release(seq)
        return None

    async def from_disk(
        self,
        ids: Items[int],
        branch: int,
        owner: str,
        rolls: Iterable[Roll] = (),
        session_id: int | None = None,
        unread: Stored | None = None,
    ) -> Sequence:
        """A sequence on the longest stored state that `ids` begin with (`Snapshots.find`).

        It is empty where no state can be read, or only state that could not be read before (`unread`).
        """
        while True:
            stored = await self._snapshots.find(ids, rolls, branch, session_id, owner)
            for note in self._snapshots.take_notes():
                self._tell(note)
            if stored is None or (unread is not None and _is_same(stored, unread)):
                return await self._model.start(owner=owner)
            if (seq := await self.loaded(await self._model.start(stored, owner))) is not None:
                return seq
            unread = stored

    async def park(self, seq: Sequence, branch: int | None) -> bool:
        """Give the memory of an idle sequence back; returns whether its state was stored for a branch first.

        Without a branch, or when it cannot be stored, the state will be computed again.
        """
        stored: Stored | None = None
        if branch is not None:
            try:
                stored = await self._snapshots.save(seq, branch)
            except StoreError as e:
                self._tell(str(e))
            except EngineError:  # it is in use again
                return False
        await self._model.park(seq, stored)
        return stored is not None


def _is_same(one: Stored, other: Stored) -> bool:
    """Whether a state was found again: it is not damaged, but cannot be read now."""
    return (len(one.ids), one.page_ids, one.chain.rolls) == (len(other.ids), other.page_ids, other.chain.rolls)


def count(usage: Usage, known: int, computed: int, is_loaded: bool, dropped: int = 0) -> int:
    """Count where the state of the log's tokens comes from; returns how many tokens of the input are not new.

    `known` tokens are in the log, `computed` of them have their state, `dropped` ones left the window. If just one
    lacks its state, it is the last sampled token, which the next step computes as always.
    """
    lacking = known - computed if known - computed > 1 else 0
    present = computed if lacking else max(known, computed)
    usage.prefilled_again = lacking
    usage.from_disk, usage.from_memory = (present, 0) if is_loaded and computed else (0, present)
    if lacking:
        usage.why = f"state is stored up to token {computed + dropped}" if computed else "no stored state"
    return present + lacking
