"""The chat page loads nothing, runs nothing but its own script, and holds a conversation in a real browser."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from leyden.serve.http.page import chat_page

PAGE, HEADERS = chat_page()
TEXT = PAGE.decode()


def test_the_policy_names_the_one_script_and_style() -> None:
    policy = HEADERS["Content-Security-Policy"]
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert len(re.findall(f"<{tag}", TEXT)) == 1
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy and "http" not in policy


def test_the_page_needs_nothing_else() -> None:
    addresses = set(re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"'\s>)]+)", TEXT)) - {"#input"}
    assert all(address.startswith("data:") for address in addresses), addresses
    assert not re.search(r"@import|\bimport\s*\(|<link (?!rel=\"icon\")|<iframe|<form", TEXT)


def test_what_a_model_writes_is_never_html() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function", TEXT
    )
    body = re.sub(r"<(script|style)>.*?</\1>", "", TEXT, flags=re.DOTALL)
    assert not re.search(r"\s(on\w+|style)=", body)


def test_the_page_is_small() -> None:
    assert len(PAGE) < 40_000


# ---- in a browser ---------------------------------------------------------------------------------------------------

ANSWER = """\
# Jars
A **Leyden jar** keeps `charge`; see https://example.org/jar.

1. glass
2. foil

```python
print("<b>spark</b>")
```
<img src=x onerror="document.title='pwned'"><script>document.title='pwned'</script>"""


class Served(BaseHTTPRequestHandler):
    """The page, and a model that answers the first turn as above and any other with what it was asked."""

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(200, PAGE, HEADERS)
        elif self.headers.get("Authorization") == "Bearer wrong":
            self._send(401, b'{"error": {"message": "no such key"}}', {"Content-Type": "application/json"})
        else:
            card = {"id": "jar-1b", "object": "model", "max_model_len": 4096, "notice": "<b>never</b> conversed"}
            models = {"object": "list", "data": [card]}
            self._send(200, json.dumps(models).encode(), {"Content-Type": "application/json"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)  # pyright: ignore[reportAttributeAccessIssue]
        said = asked["messages"][-1]["content"]
        if said == "fail":
            error = {
                "error": {"message": "<i>too long</i>", "type": "invalid_request_error", "param": None, "code": None}
            }
            self._send(400, json.dumps(error).encode(), {"Content-Type": "application/json"})
            return
        pieces = re.findall(r"[\s\S]{1,7}", ANSWER) if said == "jars" else [said.upper()]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b": keep-alive\n\n: 40 of 300 tokens read\n\n")
        for _ in range(20 if said == "long" else 0):
            time.sleep(0.1)
            self.wfile.write(b": 150 of 300 tokens read\n\n")
        for drawn, piece in enumerate(pieces, start=1):
            usage = {"prompt_tokens": 300, "completion_tokens": drawn, "prompt_tokens_details": {"cached_tokens": 256}}
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
            data = json.dumps({"choices": [choice], "usage": usage})
            self.wfile.write(f"data: {data}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.002)
        while said == "forever":
            time.sleep(0.05)
            self.wfile.write(b": keep-alive\n\n")  # raises once the page has gone
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the page stops answers by going away


class Browser:
    """One page of a headless Chromium, driven over its debugging pipe."""

    def __init__(self, path: str, profile: Path, size: str = "1280,800") -> None:
        (read_here, write_there), (read_there, write_here) = os.pipe(), os.pipe()

        def pipes() -> None:  # the browser's ends are its descriptors 3 and 4
            given = os.dup(read_there), os.dup(write_there)
            os.dup2(given[0], 3)
            os.dup2(given[1], 4)

        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--window-size={size}"]
        self.process = subprocess.Popen(
            [path, *options, f"--user-data-dir={profile}", "about:blank"],
            close_fds=False,
            preexec_fn=pipes,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self._write, self._read = write_here, os.fdopen(read_here, "rb")
        self._number, self._session, self._held = 0, None, b""
        self.events: list[dict[str, Any]] = []
        pages = self("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._held:
                self._held += os.read(self._read.fileno(), 1 << 16)
            line, self._held = self._held.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self._number:
                return answer["result"]
            self.events.append(answer)

    def run(self, script: str) -> Any:
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> Any:
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"in vain: {script}"
            time.sleep(0.03)
        return value

    def type(self, text: str, key: str | None = None) -> None:
        self("Input.insertText", text=text)
        if key:
            self.press(key)

    def press(self, key: str) -> None:
        code = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "Tab": 9}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def complaints(self) -> list[str]:
        """What the page logged: errors, and what its policy kept from running."""
        entries = [event["params"]["entry"] for event in self.events if event["method"] == "Log.entryAdded"]
        thrown = [str(event["params"]) for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        return thrown + [entry["text"] for entry in entries if entry["level"] != "verbose"]

    def close(self) -> None:
        self("Browser.close")
        self.process.wait(20)
        os.close(self._write)
        self._read.close()


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    served = QuietServer(("127.0.0.1", 0), Served)
    served.asked = []  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    opened = Browser(path, tmp_path)
    yield opened
    opened.close()


@pytest.mark.slow
def test_a_conversation_in_a_browser(server: ThreadingHTTPServer, browser: Browser) -> None:
    asked: list[dict[str, Any]] = server.asked  # pyright: ignore[reportAttributeAccessIssue]
    browser("Page.navigate", url=f"http://127.0.0.1:{server.server_address[1]}/")
    browser.wait("document.title === 'jar-1b · Leyden'")
    assert browser.run("document.activeElement.id") == "input"

    browser.type("jars", "Enter")
    browser.wait("document.querySelector('.assistant .facts')?.textContent.includes('tokens/s') && !running")
    shown = browser.run("document.querySelector('.assistant .text').innerText")
    assert "A Leyden jar keeps charge; see https://example.org/jar." in shown and "1.\n" not in shown
    assert browser.run("document.querySelector('.assistant pre').textContent") == 'print("<b>spark</b>")'
    assert browser.run("document.querySelectorAll('.assistant h3, .assistant strong, .assistant li').length") == 4
    assert browser.run("document.querySelector('.assistant a').rel") == "noopener noreferrer"
    # What looks like HTML is text.
    assert "onerror=" in shown
    assert browser.run("document.querySelectorAll('.assistant img, .assistant script, .assistant b').length") == 0
    assert browser.run("document.title") == "jar-1b · Leyden"
    facts = browser.run("document.querySelector('.assistant .facts').textContent")
    assert re.search(r"\d+ tokens, [\d,.]+ tokens/s · first token \d+\.\d\d s · 256 of 300 prompt tokens cached", facts)
    assert re.fullmatch(r"\d+ / 4,096", browser.run("document.getElementById('tokens').textContent"))

    # The second turn sends the first one along, with the settings.
    browser.run("$('system').value = 'Shout.'; $('temperature').value = '0'; $('seed').value = '7'")
    browser.type("again", "Enter")
    browser.wait("document.querySelectorAll('.assistant').length === 2 && !running")
    assert [m["role"] for m in asked[-1]["messages"]] == ["system", "user", "assistant", "user"]
    assert asked[-1]["messages"][2]["content"] == ANSWER
    assert (asked[-1]["temperature"], asked[-1]["seed"], asked[-1]["stream"]) == (0, 7, True)
    assert "max_tokens" not in asked[-1]

    # Editing the last message drops what came after it; so does asking for another answer.
    browser.press("ArrowUp")
    browser.type(" and again", "Enter")
    browser.wait("document.querySelector('article:last-child .text').innerText.includes('AND AGAIN') && !running")
    assert [m["content"] for m in asked[-1]["messages"][1::2]] == ["jars", "again and again"]
    browser.run("[...document.querySelectorAll('button')].find((b) => b.textContent === 'Regenerate').click()")
    browser.wait("!running")
    assert asked[-1] == asked[-2]

    # An error is told as text, and can be tried again; an answer can be stopped.
    browser.type("fail", "Enter")
    assert browser.wait("document.querySelector('[role=alert]')?.textContent") == "<i>too long</i>"
    browser.type("forever", "Enter")
    browser.wait("document.querySelector('article:last-child .text').innerText.includes('FOREVER')")
    assert browser.run("$('send').textContent") == "Stop"
    browser.press("Escape")
    browser.wait("!running && $('send').textContent === 'Send'")
    assert browser.run("messages.at(-1).content") == "FOREVER"

    # How much of a long prompt was read is told until the answer begins.
    browser.type("long", "Enter")
    browser.wait("/^Reading 50 %, [0-9.]+ s$/.test(document.querySelector('.waiting')?.textContent)")
    browser.wait("!running && !document.querySelector('.waiting')")

    # A reload keeps the conversation and forgets nothing but what was closed.
    browser("Page.reload")
    browser.wait("document.title === 'jar-1b · Leyden' && document.querySelectorAll('article').length === 10")
    browser.run("$('new').click()")
    assert browser.run("messages.length + document.querySelectorAll('article').length") == 0

    told = browser.run("about.textContent")
    assert told == "reads up to 4,096 tokens. <b>never</b> conversed"

    # A key is kept in the tab alone; a wrong one is told.
    browser.run("$('open').click(); $('key').value = 'wrong'; $('done').click()")
    assert "API key" in browser.wait("about.textContent.includes('key') && about.textContent")
    assert browser.run("sessionStorage.getItem('key')") == "wrong"
    assert "wrong" not in browser.run("JSON.stringify(localStorage)")
    problems = [text for text in browser.complaints() if "400" not in text and "401" not in text]
    assert problems == []
