"""A headless Chromium, driven over its debugging pipe (Chrome DevTools Protocol), with nothing else to install."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--window-size=1440,900",
)
WAIT_S = 30
KEYS = {
    "Enter": ("\r", 13),
    "Tab": ("", 9),
    "ArrowRight": ("", 39),
    "ArrowLeft": ("", 37),
    "Home": ("", 36),
    " ": (" ", 32),
}


def find() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab: commands, and what happened in it since it was opened or last cleared.

    `problems`: errors and warnings of the console and exceptions, as sentences. `requests`: every URL requested.
    """

    def __init__(self, browser: "Browser", session: str):
        self._browser, self._session = browser, session
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        return self._browser.send(method, self._session, **params)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise; raises RuntimeError where it throws."""
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, script: str, what: str = "") -> Any:
        """Waits until an expression is true, and returns it; raises TimeoutError with `what`."""
        end = time.monotonic() + WAIT_S
        while not (value := self._value(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"{what or script}; console: {self.problems}")
            time.sleep(0.02)
        return value

    def _value(self, script: str) -> Any:
        try:
            return self.run(script)
        except RuntimeError:  # the page is about to be another one
            return None

    def open(self, url: str, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Shows a URL at a width and height in CSS pixels, and waits until it has loaded."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.send("Page.navigate", url="about:blank")  # so that a change of the hash alone loads the page
        self._loaded = False
        self.send("Page.navigate", url=url)
        self._browser.wait(lambda: self._loaded, f"{url} to load")

    def press(self, key: str) -> None:
        """Presses and releases a key."""
        text, code = KEYS.get(key, (key, ord(key[0].upper())))
        names = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **names)
        self.send("Input.dispatchKeyEvent", type="keyUp", **names)

    def move(self, x: float, y: float) -> None:
        """Moves the mouse to a place in the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Clicks with the left button on the middle of an element, which is brought into view."""
        scroll_and_measure = "one.scrollIntoView({block: 'center'}), one.getBoundingClientRect().toJSON()"
        box = self.run(f"(one => ({scroll_and_measure}))(document.querySelector({json.dumps(selector)}))")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, file: Path, whole: bool = True) -> None:
        """Writes a PNG of the page, or of the window alone."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, file: Path) -> None:
        """Prints to a PDF of A4 pages."""
        printed = self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        file.write_bytes(base64.b64decode(printed["data"]))

    def close(self) -> None:
        """Closes the tab."""
        self.send("Page.close")

    def saw(self, method: str, params: dict[str, Any]) -> None:
        """Notes an event of this tab."""
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"a dialog: {params['message']}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"].get("exception", params["exceptionDetails"])))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(str(params["entry"]))


class Browser:
    """One process of Chromium with a profile of its own; `close` ends it."""

    def __init__(self, program: str, profile: Path):
        read, theirs = os.pipe()
        mine, write = os.pipe()
        # The browser reads commands from 3 and writes to 4; the shell puts the pipes there.
        script = f'exec "$0" "$@" 3<&{mine} 4>&{theirs}'
        command = [
            "bash",
            "-c",
            script,
            program,
            *FLAGS,
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=(mine, theirs),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(mine), os.close(theirs)
        self._read, self._write, self._rest, self._last = read, write, b"", 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of a command; raises RuntimeError where the browser refuses it."""
        self._last += 1
        number, message = self._last, {"id": self._last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self._put(json.dumps(message).encode() + b"\0")
        self.wait(lambda: number in self._answers, method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait(self, ready: Any, what: str) -> None:
        """Takes messages in until `ready()` is true; raises TimeoutError."""
        end = time.monotonic() + WAIT_S
        while not ready():
            if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"waited {WAIT_S} s for {what}")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError(f"the browser ended while it was asked for {what}")
            *whole, self._rest = (self._rest + data).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    self._answers[message["id"]] = message
                elif page := self._pages.get(message.get("sessionId", "")):
                    page.saw(message["method"], message["params"])

    def page(self) -> Page:
        """A new tab, watched from its first request on."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        return page

    def close(self) -> None:
        """Ends the browser, by force where it does not end by itself."""
        with contextlib.suppress(RuntimeError, TimeoutError, OSError):
            self.send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read), os.close(self._write)

    def _put(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._write, data) :]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser for the length of a block."""
    one = Browser(find() or "chromium", profile)
    try:
        yield one
    finally:
        one.close()
