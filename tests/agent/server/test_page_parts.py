"""Parts of the chat page in a real Chromium: markdown, changes, long transcripts, and what everybody must be able to use."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.agent.real_session import ASK, KNOWN, TELL, make_workspace
from tests.agent.server.browser import MISSING, Browser, browser
from tests.agent.server.serving import Server, served

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

IMPORT = "const { %s } = await import('/web/%s.js');"
RENAME = "rename load_page to fetch_page in net/fetcher.py"


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    workspace = make_workspace(tmp_path_factory.mktemp("page") / "shop")
    with served(workspace.parent / "home", workspace=workspace) as server:
        yield server


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, page_server: Server) -> Iterator[Browser]:
    """Signed in, with two sessions: one with branches, one whose edit waits for approval."""
    waiting = page_server.post("/v1/sessions", {"name": "waiting"}).json()["name"]
    page_server.post(f"/v1/sessions/{waiting}/turns", {"prompt": RENAME})
    with browser(tmp_path_factory.mktemp("profile")) as window:
        window.size(1280, 800)
        window.open(f"{page_server.url}/#token={page_server.token}&session={waiting}")
        window.until("document.querySelector('.approval')")
        yield window


def rendered(page: Browser, text: str) -> str:
    """The HTML that markdown becomes."""
    return page.script(IMPORT % ("markdown", "markdown") + "return markdown(arguments[0]).innerHTML", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Title #\ntext", "<h4>Title</h4><p>text</p>"),
        ("a **b** *c* ~~d~~ `e`", "<p>a <strong>b</strong> <em>c</em> <del>d</del> <code>e</code></p>"),
        ("2*3*4 and snake_case_name and __init__", "<p>2*3*4 and snake_case_name and __init__</p>"),
        ("`` a`b `` and \\*c\\*", "<p><code>a`b</code> and *c*</p>"),
        ("- a\n- b\n  - c\n\n1. d\n2. e", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol><li>d</li><li>e</li></ol>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> a\n> b\n\nc", "<blockquote><p>a\nb</p></blockquote><p>c</p>"),
        ("a\n\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("", ""),
        ("\r\na\r\nb", "<p>a\nb</p>"),
    ],
)  # fmt: skip
def test_markdown(page: Browser, text: str, expected: str) -> None:
    assert rendered(page, text) == expected


def test_markdown_code_links_and_tables(page: Browser) -> None:
    code = rendered(page, "```python\nif a < b:\n    pass\n```\nafter")
    assert (
        "<span>python</span>" in code
        and "<code>if a &lt; b:\n    pass</code>" in code
        and code.endswith("<p>after</p>")
    )
    assert "<code>a\n\nb</code>" in rendered(page, "~~~\na\n\nb")  # never closed
    link = rendered(page, "[here](https://example.org/a_b) or https://example.org/x.")
    assert 'href="https://example.org/a_b"' in link and 'rel="noopener noreferrer nofollow"' in link
    assert 'href="https://example.org/x"' in link and link.endswith("</a>.</p>")
    table = rendered(page, "so:\n| a | b |\n|---|--:|\n| 1 | `x\\|y` |\n")
    assert "<p>so:</p>" in table and '<td class="right"><code>x|y</code></td>' in table


@pytest.mark.parametrize(
    "text",
    [
        "<script>window.hit = 1</script>", "<img src=x onerror='window.hit = 1'>", "[a](javascript:window.hit=1)",
        "[a](JaVaScRiPt:window.hit=1)", "[a](data:text/html,<script>1</script>)", "![x](https://evil.example/x.png)",
        '[a](https://x"onmouseover="window.hit=1)', "<a href='javascript:1'>x</a>", "```<b>\n</code><script>1</script>\n",
        "| <b>a</b> | b |\n|--|--|\n| <svg/onload=1> | x |", "<javascript:1>", "[x]: javascript:1\n[x]", "<iframe src=//evil>",
    ],
)  # fmt: skip
def test_markdown_of_an_attacker_is_text(page: Browser, text: str) -> None:
    found = page.script(
        IMPORT % ("markdown", "markdown")
        + """const root = markdown(arguments[0]);
        document.getElementById('turns').append(root);
        const names = [...root.querySelectorAll('*')].map((e) => e.localName);
        const links = [...root.querySelectorAll('a')].map((a) => a.protocol);
        const odd = [...root.querySelectorAll('*')].flatMap((e) => e.getAttributeNames()).filter((n) => n.startsWith('on'));
        root.remove();
        return { names, links, odd, hit: window.hit ?? null };""",
        text,
    )
    assert not {"script", "img", "iframe", "svg", "b", "style"} & set(found["names"])
    assert set(found["links"]) <= {"https:"} and found["odd"] == [] and found["hit"] is None


def test_markdown_takes_no_longer_for_hostile_text(page: Browser) -> None:
    size = 100_000
    texts = [
        "x" * size, "*" * size, "_a" * (size // 2), "[" * size, "`" * size, "`a" * (size // 2), "[a](" * (size // 4),
        "> " * (size // 2), "- " * (size // 2), "#" * size, "# " + " #" * (size // 2), "```" + " " * size + "`",
        "|" * size + "\n" + "-" + " " * size + "x", "*a " * (size // 3), "1. " * (size // 3), "- a\n" * (size // 4), "<" * size,
        "http://" * (size // 7), "\\" * size, "~~~" + "~" * size, "a\n" * (size // 2), "> a\n" * (size // 4), "| a | b |\n|--|--|\n" * 5000,
    ]  # fmt: skip
    run = (
        IMPORT % ("markdown", "markdown")
        + "const t = performance.now(); markdown(arguments[0]); return performance.now() - t"
    )
    for text in texts:
        assert page.script(run, text) < 2000, text[:20]


def test_markdown_of_any_size_is_drawn_whole(page: Browser) -> None:
    num = 150_000
    texts = [
        "- item\n" * num, "1. item\n" * num, "para\n\n" * num, "> quote\n\n" * num, "| a | b |\n|--|--|\n" + "| c | d |\n" * num,
        "|a" * num + "\n" + "|-" * num, "- a\n  - b\n    - c\n" * (num // 3), "x " * num, "x" * num, "# h\n" * num,
    ]  # fmt: skip
    run = (
        IMPORT % ("markdown", "markdown")
        + "const n = markdown(arguments[0]); return n.textContent.match(/\\w/g).length"
    )
    for text in texts:
        wanted = sum(character.isalnum() for character in text) - (text.count("1. ") if text[0] == "1" else 0)
        assert page.script(run, text) >= wanted, text[:20]


def test_streamed_markdown_is_the_same_and_keeps_what_stands(page: Browser) -> None:
    text = (
        "# A\n\nsome *text*\nmore\n\n- a\n- b\n\n  c\n\n```py\nx\n\ny\n```\n| a |\n|---|\n| 1 |\n\n1. x\n\nend \u202e."
    )
    found = page.script(
        IMPORT % ("markdown, MarkdownView", "markdown")
        + """const view = new MarkdownView();
        let first = null, moved = 0;
        for (const c of arguments[0]) {
            view.append(c);
            view.flush();
            if (view.root.children.length > 1) { first ??= view.root.firstChild; moved += first !== view.root.firstChild; }
        }
        return [view.root.innerHTML, markdown(arguments[0]).innerHTML, moved];""",
        text,
    )
    assert found[0] == found[1] and found[2] == 0 and "\\u202e" in found[0]


def test_a_difference_is_the_shortest(page: Browser) -> None:
    def diff(before: str, after: str) -> str:
        lines = page.script(IMPORT % ("diffLines", "diff") + "return diffLines(...arguments)", before, after)
        return " ".join(sign.strip() + line for sign, line in lines)

    assert diff("a\nb\nc\nd", "a\nx\nc\nd") == "a -b +x c d"
    assert diff("a\nb\nc", "b\nc\nd") == "-a b c +d"
    assert diff("", "a\nb") == "+a +b" and diff("a", "") == "-a" and diff("a", "a") == "a"
    assert diff("a\nb\na\nb", "b\na\nb\na") in ("-a b a b +a", "+b a b a -b")
    long = "\n".join(map(str, range(3000)))
    assert diff(long, long.replace("1500\n", "")) == " ".join(long.split()).replace(" 1500 ", " -1500 ")


def test_what_cannot_be_seen_is_spelled_out(page: Browser) -> None:
    found = page.script(
        IMPORT % ("neutral, exact", "text") + "return [neutral(arguments[0]), exact(arguments[0])]",
        "a\x1b[1m\u202eb\u200bc\td\u00a0e\né\U000e0001",
    )
    assert found == [
        "a\\x1b[1m\\u202eb\u200bc\td\u00a0e\né\U000e0001",
        "a\\x1b[1m\\u202eb\\u200bc\td\\xa0e\né\\U000e0001",
    ]


def test_of_a_long_transcript_the_end_is_drawn_first(page: Browser) -> None:
    found = page.script(
        IMPORT % ("Transcript", "transcript")
        + """const shown = [...document.getElementById('turns').childNodes];
        const actions = { answer() {}, fork() {}, rewind() {} };
        const transcript = new Transcript(actions), events = [];
        for (let turn = 1; turn <= 5000; turn += 1) events.push({ turn, type: 'user', text: `p${turn}` }, { turn, type: 'text', delta: 'x' });
        const numbers = () => [...document.querySelectorAll('.turn')].map((e) => e.getAttribute('aria-label'));
        const started = performance.now();
        transcript.show(events, 5000);
        const took = performance.now() - started, before = numbers();
        document.querySelector('.begin button').click();
        const after = numbers();
        transcript.clear();
        document.getElementById('turns').replaceChildren(...shown);
        return [before.length, before[0], before.at(-1), after.length, after[0], after.at(-1), took];"""
    )
    assert found[:6] == [100, "Turn 4901", "Turn 5000", 200, "Turn 4801", "Turn 5000"] and found[6] < 2000


NAMELESS = """
const shown = [...document.querySelectorAll('button, a, input, select, textarea, meter, progress, summary, [role=group], nav, section, dialog')]
    .filter((e) => e.localName === 'dialog' || e.checkVisibility());
const text = (id) => document.getElementById(id)?.textContent ?? '';
const named = (e) => (e.getAttribute('aria-label') ?? '').trim() || (e.getAttribute('aria-labelledby') ?? '').split(' ').map(text).join('').trim()
    || (e.labels?.length ? [...e.labels].map((l) => l.textContent).join('').trim() : '')
    || (['BUTTON', 'A', 'SUMMARY'].includes(e.tagName) ? e.textContent.trim() : '');
return shown.filter((e) => !named(e) && !(e.tagName === 'SECTION' && !e.hasAttribute('role') && e.className === 'workspace')).map((e) => e.outerHTML.slice(0, 200));
"""

# Contrast of every visible text with what is painted behind it, by WCAG 2; below 4.5.
FAINT = """
const pen = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
const rgba = (color) => { pen.clearRect(0, 0, 1, 1); pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); return [...pen.getImageData(0, 0, 1, 1).data]; };
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255]; };
const faint = [];
for (const e of document.querySelectorAll('body *')) {
    const style = getComputedStyle(e);
    const says = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.localName === 'textarea';
    if (!says || !e.checkVisibility({ visibilityProperty: true }) || e.closest('.visually-hidden, option, noscript')) continue;
    const [a, b] = [light(rgba(style.color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.push(`${e.className || e.id || e.localName} '${e.textContent.trim().slice(0, 30)}' ${ratio.toFixed(2)}`);
}
return faint;
"""


def test_everybody_can_use_it(page: Browser) -> None:
    """Names of all controls, contrast in both schemes, one heading order, no width that scrolls."""
    page.script("location.hash = '#session=waiting'")
    page.until("document.querySelector('.approval')")
    backgrounds = set()
    for theme in ("light", "dark"):
        page.script("document.documentElement.dataset.theme = arguments[0]", theme)
        backgrounds.add(page.script("return getComputedStyle(document.documentElement).backgroundColor"))
        assert page.script(FAINT) == [], theme
    assert len(backgrounds) == 2 and page.script(NAMELESS) == []
    levels = page.script(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].filter((h) => h.checkVisibility()).map((h) => +h.localName[1])"
    )
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert (
        page.script('return document.querySelectorAll(\'[tabindex]:not([tabindex="0"], [tabindex="-1"])\').length') == 0
    )
    assert page.script(
        "return [...document.querySelectorAll('[id]')].length === new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size"
    )


def test_it_fits_a_phone(page: Browser) -> None:
    page.size(360, 640)
    try:
        page.until("getComputedStyle(document.getElementById('sidebar')).visibility === 'hidden'")
        place = "const { x, y, width } = document.getElementById('main').getBoundingClientRect(); return [x, y, width]"
        assert page.script(place) == [0, 0, 360]
        wide = "[...document.querySelectorAll('#main *')].filter((e) => e.checkVisibility() && !e.closest('pre, .diff, .table, .visually-hidden') && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 120))"
        assert page.script(f"return {wide}") == []
        page.click("#open-sidebar")
        page.until("document.activeElement.id === 'close-sidebar' && document.getElementById('main').inert")
        page.type("Escape")
        page.until("document.activeElement.id === 'open-sidebar' && !document.getElementById('main').inert")
        assert page.script(
            "return document.querySelector('.approval') !== null"
        )  # Escape closed the drawer, not the turn
    finally:
        page.size(1280, 800)


def test_the_page_goes_on_when_the_server_was_away(tmp_path: Path, page: Browser) -> None:
    workspace = make_workspace(tmp_path / "ws")
    with served(tmp_path / "home", workspace=workspace) as server:
        port, token = int(server.url.rpartition(":")[2]), server.token
        page.open(f"{server.url}/#token={token}")
        page.until("!document.getElementById('app').hidden")
        page.click("#prompt")
        page.type(TELL, "Enter")  # there is no session yet: one begins
        page.until("document.querySelector('.turn .usage')")
    page.until("document.getElementById('connection').textContent.includes('Reconnecting')")
    with served(tmp_path / "home", workspace=workspace, port=port):
        page.until("document.getElementById('connection').textContent === ''")
        page.click("#prompt")
        page.type(ASK, "Enter")
        page.until("document.querySelectorAll('.turn .usage').length === 2")
        assert KNOWN in page.text(".turn:last-child") and "from disk" in page.text(".turn:last-child .usage")
