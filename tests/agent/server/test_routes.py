"""docs/server.md names the routes that the server has, and no others."""

import re
from pathlib import Path
from typing import Any, cast

from holdfast.agent.server.access import Access
from holdfast.agent.server.serve import routed

DOCS = Path(__file__).parents[3] / "docs" / "server.md"
METHOD = r"(?:GET|POST|DELETE)"


def documented(text: str) -> set[str]:
    """`GET /v1/responses/{}` for each route in the section on routes: the first column of its table, and the paths after
    it. `GET`, `DELETE responses/ID` are two methods of one path; what is written in capitals is a parameter."""
    section = text.partition("\n## Routes\n")[2].partition("\n## ")[0]
    found: set[str] = set()
    for row in re.findall(r"^\| (.+?) \|", section, re.MULTILINE):
        for names, path in re.findall(rf"((?:`{METHOD}`,? )*`{METHOD}) ([\w/]+)`", row):
            found |= {f"{method} /v1/{path}" for method in re.findall(METHOD, names)}
    rest = section.rpartition("|\n")[2]
    found |= {f"GET {path}" for path in re.findall(r"`(/[\w/]*)`", rest) if path != "/v1"}
    if "`embeddings` is a 404" in rest:
        found.add("* /v1/embeddings")
    return {re.sub(r"\b[A-Z]{2,}\b(?! )", "{}", route) for route in found}


def registered() -> set[str]:
    nothing = cast(Any, None)  # no route is called here
    app = routed(nothing, Access(()), nothing, Path("/"))
    routes = [(route.method, route.resource) for route in app.router.routes() if route.method != "HEAD"]
    return {f"{method} {re.sub(r'{[a-z_]+}', '{}', resource.canonical)}" for method, resource in routes if resource}


def test_the_page_on_the_server_names_every_route_and_no_other() -> None:
    assert documented(DOCS.read_text()) == registered()


def test_a_route_that_is_not_documented_is_noticed() -> None:
    text = DOCS.read_text()
    assert registered() - documented(text.replace("`POST responses/compact`", "")) == {"POST /v1/responses/compact"}
    assert documented(text.replace("`GET models`", "`GET models`, `GET moods/ID`")) - registered() == {
        "GET /v1/moods/{}"
    }
