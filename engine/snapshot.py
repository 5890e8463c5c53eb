"""Attention state as bytes, and back: pages and tails of a sequence in their stored form.

A *page* holds the compressed rows of `page_tokens` tokens in every layer, a *tail* what else is needed to go on at an
exact position: the window, the open compressor blocks and the rows of the unfinished page (V4 spec 3.1). Both are
safetensors, rows in the packed layout of their format, so the same state gives the same bytes. The MTP block's ring is
not stored. Must not know where the bytes lie.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from holdfast.engine.errors import StateError
from holdfast.engine.sequence import Sequence
from holdfast.engine.state.cache import Cache, LayerCache, block_ring
from holdfast.engine.state.content_ids import Roll
from holdfast.engine.state.pinned_prefix import PinnedPrefix

TOGETHER = 32  # pages unpacked at a time


@dataclass(frozen=True)
class PageKey:
    """A full page of a snapshot: its id, that of the page before it, and its place in the whole history."""

    id: bytes
    parent: bytes | None
    number: int


@dataclass
class Snapshot:
    """The state of a sequence at one position; its pages stay unchanged until it is closed.

    Use it as a context manager.

    `pages` are the full pages still in the window, `prefix` those of a moved prefix; `page_data` makes the bytes of
    one.
    """

    position: int
    tail_id: bytes
    rolls: list[Roll]
    pages: list[PageKey]
    prefix: list[PageKey]
    page_data: Callable[[PageKey], bytes]
    tail_data: Callable[[], bytes]
    close: Callable[[], None]

    def __enter__(self) -> "Snapshot":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def snapshot(cache: Cache, seq: Sequence, is_followed: bool, drop: Callable[[], None]) -> Snapshot:
    """The state of an idle sequence in the cache; `drop` lets its pages go.

    It ends before the last token, because a resumed sequence feeds that one again: sampling needs its logits. If it
    `is_followed` by tokens that the sequence does not know yet, it ends after it.
    """
    position = seq.num_tokens
    if position == len(seq.token_ids) and position > seq.least_tokens and not is_followed:
        position -= 1
    size, chain = cache.page_tokens, seq.chain
    tail_id = chain.tail_id(seq.token_ids, position)
    full = (position - seq.dropped_tokens) // size
    prefix_pages = chain.rolls[-1].head_tokens // size if chain.rolls else 0
    first = seq.dropped_tokens // size  # the page number at which pages[0] stands
    prefix = [PageKey(chain.moved_page_id(n, chain.rolls[-1]), None, n) for n in range(prefix_pages)]
    numbers = range(first + prefix_pages, first + full)
    pages = [PageKey(chain.page_ids[n], chain.page_ids[n - 1] if n else None, n) for n in numbers]
    at = {key.id: page for key, page in zip([*prefix, *pages], seq.pages)}
    pinned = seq.prefix
    open_page = seq.pages[full] if full < len(seq.pages) else None
    tail = cut_tail(cache, seq.slot, open_page, position, seq.prefix)
    page_data = lambda key: pack_page(cache, at[key.id], pinned, key.number)  # noqa: E731
    return Snapshot(position, tail_id, list(chain.rolls), pages, prefix, page_data, tail.pack, drop)


@dataclass
class TailRows:
    """A tail as tensors cut out of the cache, not packed yet."""

    position: int
    tensors: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = field(default_factory=dict)

    def pack(self) -> bytes:
        packed = {name: pack(rows).contiguous() for name, (rows, pack) in self.tensors.items()}
        return save(packed, {"holdfast": json.dumps({"position": self.position})})


def cut_tail(cache: Cache, slot: int, open_page: int | None, position: int, prefix: PinnedPrefix | None) -> TailRows:
    """Copy the tail of the sequence in `slot` at `position`; `open_page` is its unfinished page, None without rows."""
    page, num_open = divmod(position, cache.page_tokens)
    tail = TailRows(position)
    for name, layer in _layers(cache):
        window = _last(position, cache.window)
        rows = layer.ring[slot, window % cache.ring_tokens].float().cpu()
        tail.tensors[f"{name}.window"] = rows, layer.row_format.pack
        if layer.blocks is not None:
            blocks = layer.blocks[slot, _open(position, layer.ratio) % layer.blocks.shape[1]]
            tail.tensors[f"{name}.blocks"] = blocks.cpu(), _as_it_is
            count = num_open // layer.ratio
            for pool in layer.pools:
                part = pool.cut(open_page or 0, 0 if open_page is None else count)
                tail.tensors[f"{name}.{pool.kind}"] = part, pool.pack
            if prefix is not None:
                for kind, rows in prefix.part(layer, page, count, cache.page_tokens).items():
                    tail.tensors[f"{name}.{kind}"] = rows.cpu().clone(), _as_it_is
    return tail


def place_tail(
    cache: Cache, slot: int, open_page: int | None, position: int, data: bytes, prefix: PinnedPrefix
) -> None:
    """The inverse of `cut_tail`. Raises StateError for bytes that are no tail of this layout and position."""
    tensors = _read(data, {"position": position})
    _place_prefix(cache, position // cache.page_tokens, position % cache.page_tokens, tensors, prefix)
    for name, layer in _layers(cache):
        window = _last(position, cache.window)
        fmt = layer.row_format
        rows = fmt.unpack(_take(tensors, f"{name}.window", (len(window), fmt.width), fmt.dtype))
        layer.ring[slot, window % cache.ring_tokens] = rows.to(layer.ring)
        if layer.blocks is not None:
            at = _open(position, layer.ratio)
            blocks = _take(tensors, f"{name}.blocks", (len(at), layer.blocks.shape[2]), torch.float32)
            layer.blocks[slot, at % block_ring(layer.ratio)] = blocks.to(cache.device)
            count = position % cache.page_tokens // layer.ratio
            for pool in layer.pools:
                part = _take(tensors, f"{name}.{pool.kind}", (count, pool.fmt.width), pool.fmt.dtype)
                if count and open_page is not None:
                    pool.place_first(open_page, part)


def pack_page(cache: Cache, page: int, prefix: PinnedPrefix | None, number: int) -> bytes:
    """The bytes of one full page; of a page of the prefix also the rows before rotation."""
    tensors: dict[str, Tensor] = {}
    for name, layer in _layers(cache):
        for pool in layer.pools:
            tensors[f"{name}.{pool.kind}"] = pool.pack(pool.cut(page, pool.per_page)).contiguous()
        if prefix is not None and layer.ratio:
            part = prefix.part(layer, number, cache.page_tokens // layer.ratio, cache.page_tokens)
            tensors |= {f"{name}.{kind}": rows.cpu().clone() for kind, rows in part.items()}
    return save(tensors)


def place_pages(cache: Cache, pages: list[int], data: Iterable[bytes], prefix: PinnedPrefix) -> None:
    """Write the bytes of full pages into the pool, some at a time, and fill `prefix` from the first of them.

    Raises StateError for bytes of another layout.
    """
    done, items = 0, iter(data)
    for item in islice(items, min(len(pages), prefix.num_tokens // cache.page_tokens)):
        place_page(cache, pages[done], item, prefix, done)
        done += 1
    while some := list(islice(items, TOGETHER)):
        _place_together(cache, pages[done : done + len(some)], some)
        done += len(some)
    if done < len(pages):
        raise StateError(f"stored state is incomplete: {done} of {len(pages)} pages")


def place_page(cache: Cache, page: int, data: bytes, prefix: PinnedPrefix, number: int) -> None:
    """The inverse of `pack_page`. Raises StateError for bytes of another layout."""
    _place_together(cache, [page], [data])
    if number * cache.page_tokens < prefix.num_tokens:
        _place_prefix(cache, number, cache.page_tokens, _read(data, None), prefix)


def _place_together(cache: Cache, pages: list[int], items: list[bytes]) -> None:
    """Each tensor as a column of the pages' bytes side by side: pages of one layout begin with the same header."""
    start = 8 + int.from_bytes(items[0][:8], "little")
    if any(len(item) != len(items[0]) or item[:start] != items[0][:start] for item in items):
        raise StateError("stored state does not fit this model: its pages are of several layouts")
    first = _read(items[0], None)
    places = {name: entry["data_offsets"] for name, entry in _header(items[0]).items() if name != "__metadata__"}
    columns = torch.frombuffer(bytearray(b"".join(items)), dtype=torch.uint8).view(len(items), -1)[:, start:]
    for name, layer in _layers(cache):
        for pool in layer.pools:
            key = f"{name}.{pool.kind}"
            _take(first, key, (pool.per_page, pool.fmt.width), pool.fmt.dtype)
            begin, end = places[key]
            pool.place(pages, columns[:, begin:end].contiguous().view(pool.fmt.dtype).view(-1, pool.fmt.width))


def _place_prefix(cache: Cache, page: int, num_tokens: int, item: dict[str, Tensor], prefix: PinnedPrefix) -> None:
    for name, layer in _layers(cache):
        if layer.ratio:
            for kind, rows in prefix.part(layer, page, num_tokens // layer.ratio, cache.page_tokens).items():
                rows[:] = _take(item, f"{name}.{kind}", tuple(rows.shape), torch.float32)


def _layers(cache: Cache) -> Iterable[tuple[str, LayerCache]]:
    return ((f"layers.{number}", layer) for number, layer in enumerate(cache.layers[: cache.num_layers]))


def _last(position: int, count: int) -> Tensor:
    """The last `count` positions before `position`."""
    return torch.arange(max(0, position - count), position)


def _open(position: int, ratio: int) -> Tensor:
    """Positions whose compressor input is still needed: the open block, and for ratio 4 the block before it."""
    first = position // ratio * ratio - (ratio if ratio == 4 else 0)
    return torch.arange(max(0, first), position)


def _read(data: bytes, expected: dict[str, int] | None) -> dict[str, Tensor]:
    try:
        tensors = load(data)
    except (SafetensorError, ValueError) as e:
        raise StateError(f"stored state cannot be read: {e}") from None
    if expected is not None:
        found = json.loads(_header(data).get("__metadata__", {}).get("holdfast", "{}"))
        if found != expected:
            raise StateError(f"stored state is of {found}, not of {expected}")
    return tensors


def _header(data: bytes) -> dict[str, Any]:
    """The header of bytes that were read as safetensors."""
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def _take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
        found = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise StateError(f"stored state does not fit this model: {name} is {found}, expected {dtype} {list(shape)}")
    return tensor


def _as_it_is(rows: Tensor) -> Tensor:
    return rows
