"""Chromium without a screen, driven through its DevTools protocol: pages, clicks, screenshots, and what they load."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

SECONDS = 60.0
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader "
    "--no-first-run --no-default-browser-check --disable-background-networking --disable-component-update --disable-sync "
    "--disable-renderer-backgrounding --disable-backgrounding-occluded-windows --disable-background-timer-throttling "
    "--disable-extensions --mute-audio --remote-debugging-port=0 --remote-allow-origins=* --disable-dev-shm-usage"
).split()


def program() -> str:
    """The browser's program; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no chromium here; make system-deps installs it")
    return found


class Browser:
    """A running Chromium with pages."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [program(), *FLAGS, f"--user-data-dir={self.folder.name}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = Path(self.folder.name, "DevToolsActivePort")
        until(lambda: port_file.exists() and port_file.read_text().count("\n"))
        self.port = int(port_file.read_text().split("\n")[0])
        self.pages: list[Page] = []

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        for page in self.pages:
            page.connection.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def close_pages(self) -> None:
        """Close all pages."""
        for page in self.pages:
            page.call("Page.close")
            page.connection.close()
        self.pages.clear()

    def open(self, url: str, width: int = 1000, height: int = 700) -> "Page":
        """A new page."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT")
        target = json.load(urllib.request.urlopen(request, timeout=SECONDS))
        page = Page(target["webSocketDebuggerUrl"], width, height)
        self.pages.append(page)
        page.go(url)
        return page


class Page:
    """One page; what it asks the network for is in ``requests``, what it logs in ``console``."""

    def __init__(self, address: str, width: int, height: int):
        from websockets.sync.client import connect

        self.connection = connect(address, max_size=None, open_timeout=SECONDS, ping_interval=None)
        self.sent, self.requests, self.sockets, self.console = 0, [], [], []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)  # to its workers
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def call(self, method: str, **arguments: object) -> dict:
        """Call a method of the protocol and wait for its result."""
        self.sent += 1
        number, end = self.sent, time.monotonic() + SECONDS
        self.connection.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            message = json.loads(self.connection.recv(timeout=max(end - time.monotonic(), 0.1)))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, event: dict) -> None:
        method, body = event.get("method"), event.get("params", {})
        if method == "Target.attachedToTarget":  # a worker: what it asks the network for counts, too
            for command in ("Network.enable", "Runtime.runIfWaitingForDebugger"):
                self.sent += 1
                message = {"id": self.sent, "method": command, "params": {}, "sessionId": body["sessionId"]}
                self.connection.send(json.dumps(message))
        elif method == "Network.requestWillBeSent":
            self.requests.append(body["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.sockets.append(body["url"])
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(body["exceptionDetails"].get("exception", body["exceptionDetails"]))[:500])
        elif method == "Log.entryAdded" and body["entry"]["level"] == "error":
            self.console.append(body["entry"]["text"])

    def go(self, url: str) -> None:
        """Open an address."""
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> object:
        """The value of an expression of JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self) -> str:
        """What the page says."""
        return str(self.value("document.body ? document.body.innerText : ''"))

    def wait(self, expression: str, seconds: float = SECONDS) -> None:
        """Wait until an expression is true."""
        until(lambda: self.value(expression), seconds)

    def wait_for_text(self, text: str, seconds: float = SECONDS) -> None:
        """Wait until the page says something."""
        until(lambda: text in self.text(), seconds)

    def screenshot(self, path: Path | None = None) -> bytes:
        """A PNG of the page."""
        self.call("Page.bringToFront")  # a page behind another one is not drawn
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(data)
        return data

    def mouse(self, kind: str, x: float, y: float, button: str = "left", **more: object) -> None:
        """An event of the mouse: mousePressed, mouseMoved, mouseReleased, mouseWheel."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1, **more)

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 8) -> None:
        """Press at one place, move, and let go at another."""
        self.call("Page.bringToFront")
        self.mouse("mousePressed", *start, buttons=1)
        for i in range(1, steps + 1):
            x, y = (a + (b - a) * i / steps for a, b in zip(start, end, strict=True))
            self.mouse("mouseMoved", x, y, buttons=1)
        self.mouse("mouseReleased", *end)

    def click(self, text: str) -> None:
        """Click what says so: a button, a label, the title of a folder."""
        self.call("Page.bringToFront")
        script = f"""(() => {{
            const found = [...document.querySelectorAll('*')].filter(e => e.offsetParent !== null &&
                [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim() === {json.dumps(text)})).pop();
            if (!found) return false;
            found.scrollIntoView({{block: 'center'}});
            found.click();
            return true;
        }})()"""
        until(lambda: self.value(script))


def until(condition, seconds: float = SECONDS) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)
