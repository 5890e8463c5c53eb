"""The chat page in a real Chromium, on a real server with pocket: what a person does, sees and hears there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.agent.server.static import FILES, WEB_DIR
from tests.agent.real_session import ASK, KNOWN, SOURCE, TELL, THERE, WHERE, make_workspace
from tests.agent.server.browser import MISSING, Browser, browser
from tests.agent.server.serving import Server, served

RENAME = "rename load_page to fetch_page in net/fetcher.py"
RENAMED = SOURCE.replace("load_page", "fetch_page")
IDLE = "!document.getElementById('send').hidden && document.querySelector('.turn:last-child .usage, .turn:last-child .line')"
LIVE = "!document.getElementById('meter').hidden"
WIDTHS = (1280, 800)

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("page") / "shop")


@pytest.fixture(scope="module")
def page_server(workspace: Path) -> Iterator[Server]:
    with served(workspace.parent / "home", workspace=workspace) as server:
        yield server


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture
def page(window: Browser, page_server: Server, workspace: Path) -> Iterator[Browser]:
    """Signed in, with a fresh session; afterwards nothing has gone wrong, and nothing foreign was asked for."""
    (workspace / "net" / "fetcher.py").write_text(SOURCE)
    window.size(*WIDTHS)
    name = page_server.post("/v1/sessions", {}).json()["name"]
    window.problems(), window.requests()
    window.open(f"{page_server.url}/#token={page_server.token}&session={name}")
    window.until(LIVE)
    yield window
    assert window.problems() == []
    foreign = [url for url in window.requests() if not url.startswith((page_server.url, "about:", "data:", "chrome:"))]
    assert foreign == []


def ask(page: Browser, prompt: str) -> None:
    page.click("#prompt")
    page.type(prompt, "Enter")


def answered(page: Browser, prompt: str) -> str:
    """One turn that needs no approval; what stands in the transcript for it."""
    num_turns = len(page.script("return [...document.querySelectorAll('.turn')]"))
    ask(page, prompt)
    page.until(f"document.querySelectorAll('.turn').length > {num_turns} && {IDLE}")
    return page.text(".turn:last-child")


def session_of(page: Browser) -> str:
    return page.script("return new URLSearchParams(location.hash.slice(1)).get('session')")


def prompts(page: Browser) -> list[str]:
    return page.script("return [...document.querySelectorAll('.user')].map((e) => e.lastChild.data)")


def test_its_files_need_no_token_and_are_all_there_is(page_server: Server) -> None:
    assert {path.name for path in WEB_DIR.iterdir()} == FILES
    for name in [*FILES, ""]:
        answer = page_server.get(f"/web/{name}" if name else "/", Authorization="")
        assert answer.status_code == 200 and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
        again = page_server.get(f"/web/{name}" if name else "/", If_None_Match=answer.headers["ETag"])
        assert again.status_code == 304 and not again.content
    for other in ["x.js", "..%2fserver%2fpage.py", "%2e%2e/server/page.py", "", "index.html/"]:
        assert page_server.get(f"/web/{other}").status_code == 404, other
    assert page_server.post("/", {}).status_code == 405


def test_its_files_load_nothing_from_elsewhere() -> None:
    for path in WEB_DIR.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.findall(r"""["'(]//|https?://[a-z]|innerHTML|outerHTML|insertAdjacentHTML""", text), path.name
        assert text.count("\n") <= 300


def test_sign_in(window: Browser, page_server: Server) -> None:
    window.open(page_server.url)
    window.until("document.activeElement.id === 'token'")
    window.type("not the token", "Enter")
    window.until("document.getElementById('sign-in-problem').textContent")
    window.type("not-the-token", "Enter")
    window.until("document.getElementById('sign-in-problem').textContent.includes('does not know')")
    assert [problem for problem in window.problems() if "401" not in problem] == []
    window.type(page_server.token, "Enter")
    window.until("!document.getElementById('app').hidden")
    assert page_server.token not in window.script("return location.href + JSON.stringify(localStorage)")
    window.click("#sign-out")
    window.until("document.activeElement.id === 'token'")
    window.click("#keep")
    window.click("#token")
    window.type(page_server.token, "Enter")
    window.until("!document.getElementById('app').hidden")
    window.script("sessionStorage.clear()")  # as in another window
    window.open(page_server.url)
    window.until("!document.getElementById('app').hidden")
    window.click("#sign-out")
    window.until("!document.getElementById('sign-in').hidden")
    assert window.script("return sessionStorage.length + localStorage.length") == 0


def test_a_link_with_another_token_asks_first(page: Browser, page_server: Server) -> None:
    page.open(f"{page_server.url}/#token=token-of-somebody-else")
    page.until("document.getElementById('confirm').open")
    assert "another" in page.text("#confirm") and "somebody" not in page.script("return location.href")
    page.click("#confirm-no")
    page.until("!document.getElementById('app').hidden")
    assert page.script("return sessionStorage.getItem('holdfast.token')") == page_server.token
    page.open(f"{page_server.url}/#token=token-of-somebody-else")
    page.click("#confirm-yes")
    page.until("document.getElementById('sign-in-problem').textContent.includes('does not know')")
    page.type(page_server.token, "Enter")
    page.until("!document.getElementById('app').hidden")
    page.problems()


def test_what_is_typed_after_enter_is_the_next_prompt(page: Browser) -> None:
    hold = "window.fetch = ((real) => async (path, how) => { if (String(path).endsWith('/turns')) await new Promise((go) => { window.go = go; }); %s; })(window.fetch)"
    page.script(hold % "return real(path, how)")
    page.click("#prompt")
    page.type("first", "Enter", "second")
    assert page.script("return document.getElementById('prompt').value") == "second"
    page.script("window.go()")
    page.until(f"{IDLE} && document.querySelectorAll('.user').length")
    assert page.script("return document.getElementById('prompt').value") == "second"
    page.script("document.getElementById('prompt').value = ''; " + hold % "throw new TypeError('gone')")
    page.type("third", "Enter", "more")
    page.script("window.go()")
    page.until("document.getElementById('composer-problem').textContent")
    assert page.script("return document.getElementById('prompt').value") == "third\nmore"
    page.script("location.reload()")


def test_the_token_leaves_the_address_and_the_page_finds_its_session_again(page: Browser, page_server: Server) -> None:
    assert page_server.token not in page.script("return location.href") and session_of(page)
    assert page.script("return history.length") <= 60
    assert KNOWN not in answered(page, TELL)
    assert KNOWN in answered(page, ASK)
    before = page.text("#turns"), session_of(page)
    page.script("location.reload()")
    page.until(f"document.readyState === 'complete' && {LIVE} && {IDLE}")
    assert (page.text("#turns"), session_of(page)) == before
    used, limit = re.findall(r"[\d,]+", page.text("#context-text"))
    assert int(used.replace(",", "")) == page.script("return document.getElementById('context-meter').value") > 100
    assert "from memory" in page.text("#origins-list") and limit == "1,048,576"


def test_a_tool_call_is_shown_with_its_outcome(page: Browser) -> None:
    assert THERE in answered(page, WHERE)
    assert page.text(".call summary").split("\n")[0].startswith("find_symbol")
    assert page.text(".call .state") == "ok" and not page.script("return document.querySelector('.call').open")
    page.click(".call summary")
    assert "net/fetcher.py:5 def Fetcher.load_page" in page.text(".call .output")


def test_an_edit_is_asked_for_and_done(page: Browser, workspace: Path) -> None:
    ask(page, RENAME)
    page.until("document.activeElement.className === 'approval'")
    assert "load_page" in page.text(".approval .del") and "fetch_page" in page.text(".approval .ins")
    assert "net/fetcher.py" in page.text(".approval") and "Approval needed: edit" in page.text("#announcer")
    page.type("y")  # at once: whoever typed it meant the prompt
    assert page.script("return document.querySelector('.approval') !== null")
    assert (workspace / "net" / "fetcher.py").read_text() == SOURCE
    page.click(".approval button", "Allow")
    page.until(IDLE)
    assert (workspace / "net" / "fetcher.py").read_text() == RENAMED
    assert page.text(".call .state") == "ok" and page.focused() == "prompt"
    assert page.text(".call .del .line, .call .del").endswith("load_page")


def test_an_edit_is_shown_with_its_line_numbers_and_refused_with_a_reason(page: Browser, workspace: Path) -> None:
    ask(page, RENAME)
    page.until("document.activeElement.className === 'approval'")
    numbers = page.script("return [...document.querySelectorAll('.approval .number')].map((e) => e.textContent)")
    assert numbers == [  # the first line says how many replacements there are
        "",
        *(str(number) for number, line in enumerate(SOURCE.split("\n"), 1) if "load_page" in line for _ in "-+"),
    ]
    assert "replacement" in page.text(".approval .diff") and "Always: mode edit" in page.text(".approval")
    page.click(".approval button", "Show whole")
    assert "load_page" in page.text(".approval .arguments")
    page.script("return new Promise((resolve) => setTimeout(resolve, 700))")
    page.script("document.querySelector('.approval').focus()")
    page.type("t", "any name but that", "Enter")
    page.until(IDLE)
    assert (workspace / "net" / "fetcher.py").read_text() == SOURCE and page.text(".call .state") == "refused"
    assert page.script("return document.querySelector('.call').open")  # as every edit
    assert "the user refused this call of edit: any name but that" in page.text(".call .output")


def test_always_is_confirmed_and_sets_the_mode_of_the_next_turns(page: Browser, workspace: Path) -> None:
    ask(page, RENAME)
    page.until("document.activeElement.className === 'approval'")
    page.script("return new Promise((resolve) => setTimeout(resolve, 700))")
    page.type("a")
    assert "Always: mode edit for this session?" in page.text(".approval .buttons")
    page.type("n", "a", "y")
    page.until(IDLE)
    assert (workspace / "net" / "fetcher.py").read_text() == RENAMED
    assert page.script("return document.getElementById('policy').value") == "edit"
    page.script("document.getElementById('policy').value = 'ask'")


def test_a_refused_edit_is_not_done(page: Browser, workspace: Path) -> None:
    ask(page, RENAME)
    page.click(".approval button", "Refuse")
    page.until(IDLE)
    assert (workspace / "net" / "fetcher.py").read_text() == SOURCE
    assert page.text(".call .state") == "refused"


def test_an_allowed_edit_is_done_without_a_question(page: Browser, workspace: Path) -> None:
    page.click("#policy")
    page.type("ArrowDown", "ArrowDown", "Enter")
    assert "Replaced load_page" in answered(page, RENAME)
    assert (workspace / "net" / "fetcher.py").read_text() == RENAMED
    assert "Approval" not in page.text("#announcer") and "Answer: Replaced" in page.text("#announcer")


def test_another_client_answers_and_its_turns_appear(page: Browser, page_server: Server, workspace: Path) -> None:
    path = f"/v1/sessions/{session_of(page)}"
    assert page_server.post(f"{path}/turns", {"prompt": RENAME}).status_code == 202
    page.until("document.querySelector('.approval')")
    call = next(e for e in page_server.get(f"{path}/events").json()["data"] if e["type"] == "approval_needed")
    page_server.post(f"{path}/approvals/{call['id']}", {"approve": True})
    page.until(IDLE)
    assert prompts(page) == [RENAME] and page.script("return document.querySelector('.approval')") is None
    assert (workspace / "net" / "fetcher.py").read_text() == RENAMED
    page_server.post(f"{path}/rewind", {"turn": 0})
    page.until("document.querySelectorAll('.turn').length === 0")


def test_a_turn_is_stopped(page: Browser, workspace: Path) -> None:
    ask(page, RENAME)
    page.until("document.querySelector('.approval')")
    page.click("#stop")
    page.until(IDLE)
    assert "interrupted" in page.text(".turn:last-child") and page.script("return !document.querySelector('.approval')")
    assert page.text(".call .state") == "stopped" and (workspace / "net" / "fetcher.py").read_text() == SOURCE
    ask(page, RENAME)
    page.until("document.querySelector('.approval')")
    page.type("Escape")
    page.until(IDLE)
    assert page.text(".turn:last-child").count("interrupted") == 1


def test_fork_and_rewind(page: Browser) -> None:
    for prompt in (TELL, WHERE, ASK):
        answered(page, prompt)
    first = session_of(page)
    page.click(".turn:nth-of-type(2) button", "Fork")
    page.until(f"location.hash !== '#session={first}' && {LIVE} && document.querySelectorAll('.turn').length === 2")
    assert prompts(page) == [TELL, WHERE]
    assert session_of(page) == page.text("#session-name") != first
    page.click(f"[data-key='open {first}']")
    page.until("document.querySelectorAll('.turn').length === 3")
    page.click(".turn:nth-of-type(1) button", "Rewind")
    page.until(f"document.querySelectorAll('.turn').length === 1 && {LIVE}")
    assert KNOWN in answered(page, ASK) and prompts(page) == [TELL, ASK]
    assert page.text(".turn:last-child h3") == "Turn 2"
    page.click(".branch:not([aria-current])")  # what was left is still there
    page.until("document.querySelectorAll('.turn').length === 3")
    assert prompts(page) == [TELL, WHERE, ASK]
    page.click(".begin button", "Rewind")
    page.until(f"document.querySelectorAll('.turn').length === 0 && {LIVE}")
    assert KNOWN not in answered(page, ASK)


def test_a_session_is_deleted_only_after_a_question(page: Browser, page_server: Server) -> None:
    name = session_of(page)
    delete = f".remove[aria-label='Delete session {name}']"
    page.click(delete)
    assert page.focused() == "confirm-no"
    page.type("Escape")
    assert page_server.get(f"/v1/sessions/{name}").status_code == 200
    page.click(delete)
    page.click("#confirm-yes")
    page.until(f"!document.querySelector(\"{delete}\") && document.activeElement.id === 'new-session'")
    assert page_server.get(f"/v1/sessions/{name}").status_code == 404
    page.type("Enter")
    page.until(f"{LIVE} && document.activeElement.id === 'prompt'")
    assert page.text("#turns").startswith("Beginning") and not prompts(page)


def test_a_session_that_another_client_deletes_is_gone(page: Browser, page_server: Server) -> None:
    name = session_of(page)
    with page_server.http() as http:
        assert http.delete(f"/v1/sessions/{name}").status_code == 200
    page.until("document.getElementById('composer-problem').textContent.includes('was deleted')")
    assert session_of(page) is None and page.text("#session-name") == "No session"


def test_a_whole_turn_with_the_keyboard_alone(page: Browser, workspace: Path) -> None:
    page.script("document.querySelector('.skip').focus()")
    order = [page.focused()]
    while order[-1] != "send" and len(order) < 60:
        page.type("Tab")
        order.append(page.focused())
    assert order[:3] == ["Skip to the prompt", "Skip to the transcript", "new-session"]
    assert order[-3:] == ["prompt", "policy", "send"] and len(set(order)) == len(order)
    page.type("?")
    page.until("document.getElementById('shortcuts').open")
    page.type("Escape")
    page.until("document.activeElement.id === 'send'")
    page.script("document.querySelector('.skip').focus()")
    page.type("Enter")
    assert page.focused() == "prompt"
    page.type("rename load_page to fetch_page", "Shift+Enter", "in net/fetcher.py", "Enter")
    page.until("document.activeElement.className === 'approval'")
    page.script("return new Promise((resolve) => setTimeout(resolve, 700))")
    page.type("Tab", "Tab")
    assert page.focused().startswith("Allow")
    page.type("n")
    page.until(IDLE)
    assert page.text(".call .state") == "refused" and page.focused() == "prompt"
    page.type("Shift+Tab", "Shift+Tab")
    assert page.focused() == "Rewind to here (after turn 1)" or page.focused() == "Fork from here (after turn 1)"
    page.script("document.querySelector('.session[aria-current]').focus()")
    page.type("End")
    assert page.script("return document.activeElement.className") in ("session", "branch")
    page.type("Home")
    assert page.focused() == page.script("return document.querySelector('.session').textContent.trim()")
