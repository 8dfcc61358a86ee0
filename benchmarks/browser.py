"""A page in headless Chromium, driven over its debugging pipe; tests use it too."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxft.report.browser import find_browser


class Browser:
    """One page in headless Chromium.

    Args:
        profile: a folder for what Chromium writes.

    Attributes:
        errors: what its console and its log complained about.
        requests: the addresses that it loaded.
    """

    def __init__(self, profile: Path):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        browser = find_browser() or "chromium"
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            [
                "bash",
                "-c",
                script,
                "bash",
                browser,
                *options,
                "--remote-debugging-pipe",
            ],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.reader = os.fdopen(ours_in, "rb")
        self.writer = os.fdopen(ours_out, "wb")
        self.errors: list[dict[str, Any]] = []
        self._traced: list[dict[str, Any]] = []
        self._tracing = False
        self.requests: list[str] = []
        self.session, self.number = None, 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(str(answer["error"]))
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self.reader.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium has ended.")
            data += byte
        event = json.loads(data)
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        if event.get("method") == "Runtime.consoleAPICalled" and params["type"] != "log":
            self.errors.append(params)
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"])
        if event.get("method") == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "blob:")):
                self.requests.append(url)
        if event.get("method") == "Tracing.dataCollected":
            self._traced += params["value"]
        if event.get("method") == "Tracing.tracingComplete":
            self._tracing = False
        return event

    def trace(self, expression: str, categories: Sequence[str]) -> tuple[Any, list[dict[str, Any]]]:
        """Return the value of an expression, and Chromium's trace of what it did meanwhile."""
        self._traced, self._tracing = [], True
        config = {"includedCategories": list(categories)}
        self.call("Tracing.start", traceConfig=config, transferMode="ReportEvents")
        value = self.ask(expression)
        self.call("Tracing.end")
        while self._tracing:
            self._read()
        return value, self._traced

    def open(self, page: Path | str, scheme: str = "light") -> None:
        """Open a file or an address, and wait until it is there."""
        self.requests = []
        self.scheme(scheme)
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self.wait("document.readyState === 'complete'")

    def scheme(self, name: str) -> None:
        """Prefer `light` or `dark` colors."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", **asked)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true, for ten seconds at least."""
        for _ in range(200):
            if self.ask(condition):
                return
            self.ask("new Promise(done => setTimeout(done, 50))")
        raise TimeoutError(f"never came true: {condition}")

    def size(self, width: int, height: int) -> None:
        """Set the size of the window in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def picture(self) -> bytes:
        """Return the window as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        """End Chromium."""
        self.process.kill()
        self.process.wait()
        self.reader.close()
        self.writer.close()
