"""`python -m tests.long.page_pictures`: the pictures of the chat page in docs/, taken of a real server with pocket."""

import tempfile
from pathlib import Path

from tests.agent.server.browser import Browser, browser
from tests.agent.server.serving import Server, served

DOCS = Path(__file__).parents[2] / "docs"
FETCHER = '''"""Pages over HTTP, kept for a while."""

LIMIT = 30


class Fetcher:
    def __init__(self, cache):
        self.cache = cache

    def load_page(self, address):
        return self.cache.get(address, LIMIT)


def build_fetcher(settings):
    return Fetcher(settings.cache)
'''
REPORT = """from net.fetcher import build_fetcher


def daily_report(settings):
    fetcher = build_fetcher(settings)
    return fetcher.load_page(settings.address)
"""
TALK = ["remember that the staging port is 4711", "where is load_page defined?", "who uses build_fetcher?"]
RENAME = "rename load_page to fetch_page in net/fetcher.py"
OVER = "document.getElementById('stop').hidden && document.querySelector('.turn:last-child .usage')"


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-") as directory:
        workspace = Path(directory, "shop")
        for name, text in (("net/fetcher.py", FETCHER), ("jobs/report.py", REPORT)):
            (workspace / name).parent.mkdir(parents=True, exist_ok=True)
            (workspace / name).write_text(text)
        with (
            served(Path(directory, "home"), workspace=workspace) as server,
            browser(Path(directory, "profile")) as window,
        ):
            take(server, window)


def take(server: Server, window: Browser) -> None:
    window.size(1280, 800)
    for name in ("release-notes", "report-job", "fetcher"):
        server.post("/v1/sessions", {"name": name})
    talk(server, window, "report-job", ["outline jobs/report.py"])
    talk(server, window, "fetcher", TALK)
    server.post("/v1/sessions/fetcher/rewind", {"turn": 1})
    talk(server, window, "fetcher", ["what is the staging port?", "where is load_page defined?"], num_turns=1)
    window.click("#prompt")
    window.type(RENAME, "Enter")
    window.until("document.activeElement.className === 'approval'")
    window.screenshot(DOCS / "page-approval.png")
    window.click(".approval button", "Allow")
    window.until(OVER)
    window.until("document.querySelector('.branch')")
    for theme in ("light", "dark"):
        window.script("document.documentElement.dataset.theme = arguments[0]", theme)
        window.screenshot(DOCS / f"page-{theme}.png")
    window.script("document.documentElement.dataset.theme = 'light'")
    window.size(390, 780)
    window.until(
        "!document.getAnimations().length && document.getElementById('sidebar').getBoundingClientRect().right <= 0"
    )
    window.script("document.getElementById('transcript').scrollTop = 1e9")
    window.screenshot(DOCS / "page-phone.png")


def talk(server: Server, window: Browser, session: str, prompts: list[str], num_turns: int = 0) -> None:
    window.open(f"{server.url}/#token={server.token}&session={session}")
    window.until("!document.getElementById('meter').hidden")
    for number, prompt in enumerate(prompts, start=num_turns + 1):
        window.click("#prompt")
        window.type(prompt, "Enter")
        window.until(f"document.querySelectorAll('.turn').length === {number} && {OVER}")


if __name__ == "__main__":
    main()
