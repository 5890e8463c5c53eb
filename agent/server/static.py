"""The chat page: a fixed list of files, served without a token, since they have no data of users.

The Content-Security-Policy lets the page load files of this server only, and forbids scripts to make elements from
text. Browsers revalidate the files with each load (ETag), so page and server have the same version. Must not know what
the page does.
"""

from pathlib import Path

from aiohttp import web

from holdfast.agent.server.json import ApiError

WEB_DIR = Path(__file__).parents[1] / "web"
INDEX = "index.html"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = frozenset(
    {
        INDEX,
        "icon.svg",
        "style.css",
        "transcript.css",
        "api.js",
        "calls.js",
        "composer.js",
        "dialogs.js",
        "diff.js",
        "dom.js",
        "follow.js",
        "inline.js",
        "main.js",
        "markdown.js",
        "meter.js",
        "sessions.js",
        "sign_in.js",
        "text.js",
        "theme.js",
        "transcript.js",
        "turn.js",
    }
)
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
PAGE, FILE = "/", "/web/{file}"


async def page(request: web.Request) -> web.StreamResponse:
    """The page, or one of its files. Raises ApiError 404."""
    name = request.match_info.get("file", INDEX)
    if name not in FILES:
        raise ApiError(404, f"the page has no file '{name[:100]}'", "not_found")
    path = WEB_DIR / name
    return web.FileResponse(path, headers={**HEADERS, "Content-Type": f"{TYPES[path.suffix]}; charset=utf-8"})
