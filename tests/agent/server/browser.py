"""A real Chromium for tests of the page, driven over the WebDriver protocol with plain HTTP to chromedriver."""

import json
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--lang=en",
]  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in the protocol
KEYS = {
    "Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "Shift": "\ue008", "ArrowDown": "\ue015", "ArrowUp": "\ue013",
    "ArrowRight": "\ue014", "ArrowLeft": "\ue012", "Home": "\ue011", "End": "\ue010",
}  # fmt: skip
WAIT_S = 20.0


class Browser:
    """One window. What is asked for with a selector must be the only visible one of its kind."""

    def __init__(self, http: httpx2.Client, path: str):
        self._http, self._path = http, path

    def open(self, url: str) -> None:
        self._post("url", {"url": "about:blank"})  # an address that differs in its fragment only would load nothing
        self._post("url", {"url": url})

    def script(self, body: str, *args: Any) -> Any:
        """The value of a function body; a promise is waited for."""
        wrapped = f"return (async function() {{ {body} }}).apply(null, arguments)"
        return self._post("execute/sync", {"script": wrapped, "args": list(args)})

    def until(self, condition: str, *args: Any) -> Any:
        """Wait until an expression is true; its value."""
        end = time.monotonic() + WAIT_S
        while not (value := self.script(f"return {condition}", *args)):
            assert time.monotonic() < end, f"never came true: {condition}\n{self.text('body')[-2000:]}"
            time.sleep(0.04)
        return value

    def text(self, selector: str) -> str:
        return self.script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def click(self, selector: str, text: str = "") -> Any:
        """The last visible element that matches and contains the text, as a person clicks it."""
        find = """[...document.querySelectorAll(arguments[0])].filter(
            (e) => e.checkVisibility() && e.textContent.includes(arguments[1])).at(-1)"""
        for is_last in (False, True):
            element = self.until(find, selector, text)
            try:
                return self._post(f"element/{element[ELEMENT]}/click", {})
            except AssertionError as e:  # the page has drawn it anew in between
                if is_last or "stale element" not in str(e):
                    raise

    def type(self, *keys: str) -> None:
        """Into what has the focus: texts, and keys by name ("Enter", "Shift+Tab")."""
        for key in keys:
            *held, last = key.split("+") if key.startswith("Shift+") else [key]
            strokes = [KEYS[last]] if last in KEYS else list(last)
            down = [{"type": "keyDown", "value": KEYS[name]} for name in held]
            pressed = [{"type": kind, "value": c} for c in strokes for kind in ("keyDown", "keyUp")]
            up = [{"type": "keyUp", "value": KEYS[name]} for name in held]
            self._post("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": [*down, *pressed, *up]}]})

    def focused(self) -> str:
        """A few words about what has the focus."""
        return self.script(
            "const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.textContent.trim()"
        )

    def problems(self) -> list[str]:
        """Errors and warnings of the console since the last time."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._post("se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last time."""
        messages = [json.loads(entry["message"])["message"] for entry in self._post("se/log", {"type": "performance"})]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def size(self, width: int, height: int) -> None:
        """Of the page itself, as on a screen of that size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **metrics)

    def command(self, name: str, **params: Any) -> Any:
        """One of Chromium's own."""
        return self._post("goog/cdp/execute", {"cmd": name, "params": params})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(b64decode(self._http.get(f"{self._path}/screenshot").json()["value"]))

    def _post(self, path: str, body: Any) -> Any:
        answer = self._http.post(f"{self._path}/{path}", json=body).json()["value"]
        assert not (isinstance(answer, dict) and "stacktrace" in answer), (path, answer["error"], answer["message"])
        return answer


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A Chromium with a fresh profile, until the block ends."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        port = next(line for line in driver.stdout if "successfully on port" in line).split()[-1].rstrip(".")
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            made = http.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
            assert "sessionId" in made, made
            path = f"/session/{made['sessionId']}"
            try:
                yield Browser(http, path)
            finally:
                http.delete(path)
    finally:
        driver.terminate()
        driver.communicate()
