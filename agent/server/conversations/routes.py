"""The routes of `/v1/conversations`: conversations that the server keeps, and their items.

Owns paths, bodies and the objects that clients get. Must not know how conversations are stored.
"""

import secrets
from typing import Annotated

from aiohttp import web
from pydantic import Field

from holdfast.agent.server.conversations.kept import Kept
from holdfast.agent.server.http import SERVICE, USER, json_response, page_of, read_json
from holdfast.agent.server.json import ApiError, Json
from holdfast.agent.server.responses.items import normal_items
from holdfast.agent.server.responses.request import MAX_ITEMS, Metadata
from holdfast.agent.server.validation import Body, Names, checked

Items = Annotated[list[Json], Field(max_length=MAX_ITEMS, fail_fast=True)]


class New(Body):
    items: Items = Field(default_factory=list)
    metadata: Metadata = Field(default_factory=dict)


class Update(Body):
    metadata: Metadata


class Addition(Body):
    items: Items = Field(min_length=1)


def _normal(items: list[Json]) -> list[Json]:
    """Items of a client, each with an id. Raises ApiError that names the item."""
    try:
        return normal_items(items, f"item_{secrets.token_hex(16)}_")
    except ApiError as e:
        raise Names({}, [f"items[{number}]" for number in range(len(items))]).said(e) from None


def _shown(kept: Kept) -> Json:
    return {
        "id": kept.id,
        "object": "conversation",
        "created_at": int(kept.created_at),
        "metadata": kept.metadata,
    }


async def _found(request: web.Request) -> Kept:
    return await request.app[SERVICE].kept.get(request[USER].name, request.match_info["id"])


async def _item(request: web.Request, kept: Kept) -> Json:
    """The item that the path names."""
    wanted = request.match_info["item_id"]
    for item in await request.app[SERVICE].kept.items(request[USER].name, kept):
        if item["id"] == wanted:
            return item
    raise ApiError(404, f"Item with id '{wanted[:100]}' not found in this conversation.", "item_not_found", "item_id")


async def create(request: web.Request) -> web.StreamResponse:
    service, owner, body = request.app[SERVICE], request[USER].name, checked(New, await read_json(request))
    await service.quotas.check(request[USER])
    return json_response(_shown(await service.kept.create(owner, _normal(body.items), body.metadata)))


async def retrieve(request: web.Request) -> web.StreamResponse:
    return json_response(_shown(await _found(request)))


async def update(request: web.Request) -> web.StreamResponse:
    body = checked(Update, await read_json(request))
    async with request.app[SERVICE].kept.changing(request[USER].name, request.match_info["id"]) as kept:
        await request.app[SERVICE].kept.set_metadata(request[USER].name, kept, body.metadata)
    return json_response(_shown(kept))


async def delete(request: web.Request) -> web.StreamResponse:
    service, owner = request.app[SERVICE], request[USER].name
    async with service.kept.changing(owner, request.match_info["id"]) as kept:
        await service.kept.delete(owner, kept)
    service.quotas.forget(request[USER])
    return json_response({"id": kept.id, "object": "conversation.deleted", "deleted": True})


async def list_items(request: web.Request) -> web.StreamResponse:
    kept = await _found(request)
    return json_response(page_of(request, await request.app[SERVICE].kept.items(request[USER].name, kept)))


async def add_items(request: web.Request) -> web.StreamResponse:
    service, owner, body = request.app[SERVICE], request[USER].name, checked(Addition, await read_json(request))
    items = _normal(body.items)
    await service.quotas.check(request[USER])
    async with service.kept.changing(owner, request.match_info["id"]) as kept:
        await service.kept.add(owner, kept.id, items)
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"], "has_more": False}
    return json_response({"object": "list", "data": items, **ends})


async def retrieve_item(request: web.Request) -> web.StreamResponse:
    return json_response(await _item(request, await _found(request)))


async def delete_item(request: web.Request) -> web.StreamResponse:
    service, owner = request.app[SERVICE], request[USER].name
    async with service.kept.changing(owner, request.match_info["id"]) as kept:
        item = await _item(request, kept)
        await service.kept.remove_item(owner, kept, item["id"])
    return json_response(_shown(kept))


def routes() -> list[web.RouteDef]:
    base = "/v1/conversations"
    one = f"{base}/{{id}}"
    return [
        web.post(base, create),
        web.get(one, retrieve),
        web.post(one, update),
        web.delete(one, delete),
        web.get(f"{one}/items", list_items),
        web.post(f"{one}/items", add_items),
        web.get(f"{one}/items/{{item_id}}", retrieve_item),
        web.delete(f"{one}/items/{{item_id}}", delete_item),
    ]
