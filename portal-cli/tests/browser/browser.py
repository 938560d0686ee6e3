"""Drives a headless Chromium through what portal exposes over https, and checks what the browser saw.

Usage: browser.py BINARY DIRECTORY: everything that is made is made in DIRECTORY.

Prints a line a case and "N passed, N failed"; exits 1 if one failed.
"""

import asyncio
import hashlib
import http.server
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import websockets
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service

IMAGES, SHEETS, SCRIPTS = 20, 15, 15
EVENTS = 5
UPLOAD = 64 << 20
# What portal may grow by while the upload passes: far less than the upload, whatever its own buffers are.
UPLOAD_MEMORY = 24 << 20
VIDEO_SECONDS = 60
WAIT = 45.0  # seconds that any one step may take


# ----------------------------------------------------------------------------------------------------------------------
# What is served


def png(width: int, height: int, seed: int) -> bytes:
    """An image that does not compress."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    noise = hashlib.shake_256(str(seed).encode()).digest(width * height * 3)
    rows = b"".join(b"\0" + noise[at : at + width * 3] for at in range(0, len(noise), width * 3))
    head = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_site(site: Path) -> None:
    """A page with fifty assets, each of which leaves a trace that shows that it was used."""
    (site / "assets").mkdir(parents=True)
    for n in range(IMAGES):
        (site / f"assets/image {n}.png").write_bytes(png(20 + 15 * n, 16, n))
    for n in range(SHEETS):
        padding = "/* " + "-" * (1 << n) + " */\n"
        (site / f"assets/sheet-{n}.css").write_text(f"{padding}:root {{ --sheet-{n}: {n}; }}\n")
    for n in range(SCRIPTS):
        padding = "// " + "-" * (1 << n) + "\n"
        (site / f"assets/script-{n}.js").write_text(f"{padding}window.scripts.push({n});\n")
    head = "".join(f'<link rel="stylesheet" href="assets/sheet-{n}.css">\n' for n in range(SHEETS))
    body = "".join(f'<img src="assets/image%20{n}.png">\n' for n in range(IMAGES))
    body += "".join(f'<script src="assets/script-{n}.js"></script>\n' for n in range(SCRIPTS))
    icon = '<link rel="icon" href="data:,">'  # a browser asks for one that is not named
    (site / "index.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>assets</title>{icon}<script>window.scripts = []</script>\n{head}{body}"
    )
    (site / "video.html").write_text(
        f'<!doctype html><meta charset=utf-8><title>video</title>{icon}<video src="video.webm" muted preload="auto"></video>'
    )
    make_video(site / "video.webm")


def make_video(path: Path) -> None:
    """Noise, so that a minute is more than a browser reads ahead: 3 s, and these again and again."""
    part = path.with_name("part.webm")
    ffmpeg = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-y"]
    source = ["-f", "lavfi", "-i", "testsrc2=size=480x270:rate=25", "-vf", "noise=alls=60:allf=t", "-t", "3"]
    codec = ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "16", "-b:v", "4M", "-minrate", "4M", "-g", "25"]
    subprocess.run([*ffmpeg, *source, *codec, part], check=True, timeout=60)
    repeat = ["-stream_loop", str(VIDEO_SECONDS // 3 - 1), "-i", part, "-c", "copy"]
    subprocess.run([*ffmpeg, *repeat, path], check=True, timeout=60)
    part.unlink()


class Application(http.server.BaseHTTPRequestHandler):
    """Events that wait for the browser's answer to the one before, and a place to send much to."""

    protocol_version = "HTTP/1.1"
    answered = threading.Semaphore(0)

    def do_GET(self) -> None:
        if self.path != "/events":
            self.answer("text/html", b'<!doctype html><title>application</title><link rel="icon" href="data:,">')
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(EVENTS):
            self.wfile.write(f"data: {number}\n\n".encode())
            if not self.answered.acquire(timeout=WAIT):
                return
        self.wfile.write(b"event: over\ndata: over\n\n")

    def do_POST(self) -> None:
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left and (data := self.rfile.read1(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
        if self.path == "/answer":
            self.answered.release()
        self.answer("text/plain", digest.hexdigest().encode())

    def answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serve_application() -> int:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Application)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


async def echo(socket: Any, *_: object) -> None:
    """Speaks first, gives back what it gets, and closes when told to."""
    await socket.send("welcome")
    async for message in socket:
        if message == "bye":
            await socket.close(4001, "as you wish")
            return
        await socket.send(message)


def serve_echo() -> int:
    port: list[int] = []
    ready = threading.Event()

    async def run() -> None:
        async with websockets.serve(echo, "127.0.0.1", 0, max_size=None) as server:
            port.append(server.sockets[0].getsockname()[1])
            ready.set()
            await asyncio.Future()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    if not ready.wait(WAIT):
        raise Failure("the WebSocket server does not start")
    return port[0]


# ----------------------------------------------------------------------------------------------------------------------
# Portal and the browser


class Failure(Exception):
    """What was expected and is not so."""


def expect(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise Failure(f"{what}: {got!r}, expected {wanted!r}")


def eventually(what: str, attempt: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT
    while not (result := attempt()):
        if time.monotonic() > end:
            raise Failure(f"{what}: not in {WAIT:.0f} s")
        time.sleep(0.05)
    return result


class Exposed:
    """A running `portal expose`, with a relay of its own."""

    def __init__(self, binary: str, directory: Path, name: str, target: str) -> None:
        self.log = directory / f"{name}.log"
        out = directory / f"{name}.out"
        command = [binary, "expose", target, "--kind", "https", "--http", "127.0.0.1:0"]
        environment = {"HOME": str(directory / "home"), "PATH": os.environ["PATH"]}
        with out.open("wb") as stdout, self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
        try:
            lines = eventually(f"{name}: its address", lambda: self.process.poll() is not None or out.read_text())
        except Failure:
            self.stop()
            raise
        found = re.fullmatch(r"https://([a-z0-9-]+\.localhost:\d+)/\n", str(lines))
        if not found:
            raise Failure(f"{name}: no https address below localhost but {lines!r}: {self.log.read_text()}")
        self.host = found[1]

    def peak_memory(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.M)[1]) << 10

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(20)


def trust(root: Path, home: Path) -> None:
    """Puts the development authority's root where Chromium on Linux looks for what its user trusts."""
    database = home / ".pki/nssdb"
    database.mkdir(parents=True)
    certutil = ["certutil", "-d", f"sql:{database}"]
    subprocess.run([*certutil, "-N", "--empty-password"], check=True, timeout=30)
    subprocess.run([*certutil, "-A", "-t", "C,,", "-n", "portal", "-i", root], check=True, timeout=30)


@contextmanager
def chromium(directory: Path, home: Path, name: str) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    flags = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
        --disable-component-update --disable-sync --disable-dev-shm-usage --no-proxy-server
        --autoplay-policy=no-user-gesture-required"""
    for flag in [*flags.split(), f"--user-data-dir={directory / name}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    environment = {**os.environ, "HOME": str(home)}
    service = Service("/usr/bin/chromedriver", env=environment, log_path=str(directory / f"{name}.log"))
    browser = webdriver.Chrome(service=service, options=options)
    try:
        browser.set_page_load_timeout(WAIT)
        browser.set_script_timeout(WAIT)
        yield browser
    finally:
        browser.quit()


def run_script(browser: webdriver.Chrome, script: str, *arguments: object) -> Any:
    """The value of the body of an async function; what it throws is a failure."""
    wrapped = """const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);
        (async (...args) => { %s })(...given).then(value => done({value}), error => done({error: String(error)}));"""
    result = browser.execute_async_script(wrapped % script, *arguments)
    if "error" in result:
        raise Failure(result["error"])
    return result.get("value")


Events = list[tuple[str, dict[str, Any]]]


def network(browser: webdriver.Chrome) -> Events:
    """What the browser's network did since the last call: events of the DevTools protocol, by name."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [(message["method"], message["params"]) for message in messages]


def failures(events: Events) -> list[str]:
    """Why requests failed. A browser also asks for things of its own, in vain here: those it does not show as sent."""
    asked = {p["requestId"]: p["request"]["url"] for name, p in events if name == "Network.requestWillBeSent"}
    found = []
    for name, params in events:
        if name == "Network.loadingFailed" and params["requestId"] in asked and not params.get("canceled"):
            found.append(f"{params['errorText']} at {asked[params['requestId']]}")
        if name == "Network.responseReceived" and params["response"]["status"] >= 400:
            found.append(f"{params['response']['status']} at {params['response']['url']}")
    return found


def check_quiet(browser: webdriver.Chrome, events: Events) -> None:
    """No request has failed, and the page has nothing to complain about."""
    expect("failed requests", failures(events), [])
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    expect("errors on the page", severe, [])


# ----------------------------------------------------------------------------------------------------------------------
# Cases


class Cases:
    def __init__(self, browser: webdriver.Chrome, directory: Path, exposed: dict[str, Exposed]) -> None:
        self.browser = browser
        self.directory = directory
        self.exposed = exposed

    def url(self, name: str, path: str = "/", scheme: str = "https") -> str:
        return f"{scheme}://{self.exposed[name].host}{path}"

    def case_no_trust(self) -> str:
        """A browser that was not told of the authority refuses, or the other cases would prove nothing."""
        home = self.directory / "stranger"
        home.mkdir()
        with chromium(self.directory, home, "stranger-profile") as stranger:
            with suppress(WebDriverException):
                stranger.get(self.url("site"))
            seen = failures(network(stranger))
            expect("failed requests", seen, ["net::ERR_CERT_AUTHORITY_INVALID at " + self.url("site")])
        return seen[0]

    def case_assets(self) -> str:
        """Fifty assets over HTTP/2, all of them whole and in use, and no request failed."""
        started = time.monotonic()
        self.browser.get(self.url("site"))
        figure = f"{time.monotonic() - started:.1f} s"
        events = network(self.browser)
        check_quiet(self.browser, events)
        seen = run_script(
            self.browser,
            """const timing = entry => [decodeURIComponent(new URL(entry.name).pathname), entry.nextHopProtocol,
                    entry.responseStatus, entry.decodedBodySize];
            const style = getComputedStyle(document.documentElement);
            return {
                secure: isSecureContext,
                page: performance.getEntriesByType("navigation").map(timing),
                assets: performance.getEntriesByType("resource").map(timing),
                images: [...document.images].map(image => image.naturalWidth),
                sheets: [...Array(args[0]).keys()].map(n => style.getPropertyValue(`--sheet-${n}`).trim()),
                scripts: window.scripts,
            };""",
            SHEETS,
        )
        site = self.directory / "site"
        expect("a secure context", seen["secure"], True)
        expect("the page", seen["page"], [["/", "h2", 200, (site / "index.html").stat().st_size]])
        wanted = [["/assets/" + file.name, "h2", 200, file.stat().st_size] for file in (site / "assets").iterdir()]
        expect("number of assets", len(wanted), IMAGES + SHEETS + SCRIPTS)
        expect("the assets", sorted(seen["assets"]), sorted(wanted))
        expect("the images' widths", seen["images"], [20 + 15 * n for n in range(IMAGES)])
        expect("the style sheets", seen["sheets"], [str(n) for n in range(SHEETS)])
        expect("the scripts", seen["scripts"], list(range(SCRIPTS)))
        answers = [params["response"] for name, params in events if name == "Network.responseReceived"]
        ours = [each for each in answers if each["url"].startswith(self.url("site"))]
        versions = [each["securityDetails"]["protocol"] for each in ours]
        expect("TLS", versions, ["TLS 1.3"] * (len(wanted) + 1))
        return f"{len(wanted)} assets by h2 in {figure}, 0 failed requests"

    def case_video(self) -> str:
        """Plays, and goes on playing after seeks to what was not loaded, by ranges."""
        self.browser.get(self.url("site", "/video.html"))
        seen = run_script(
            self.browser,
            """const video = document.querySelector("video");
            const failed = new Promise((_, reject) => video.addEventListener("error",
                () => reject(`the video: ${video.error.code} ${video.error.message}`)));
            if (video.error) throw `the video: ${video.error.code} ${video.error.message}`;
            const event = name => Promise.race([failed,
                new Promise(resolve => video.addEventListener(name, resolve, {once: true}))]);
            const playing = async from => {
                while (video.currentTime < from + 0.3) await event("timeupdate");
            };
            await video.play();
            await playing(0);
            const duration = video.duration, positions = [];
            for (const target of [50, 5, 35, 58, 20]) {
                const seeked = event("seeked");
                video.currentTime = target;
                await seeked;
                positions.push([target, video.currentTime]);
                await playing(target);
            }
            video.pause();
            return {duration, positions, frames: video.getVideoPlaybackQuality().totalVideoFrames};""",
        )
        events = network(self.browser)
        check_quiet(self.browser, events)
        expect("its length", round(seen["duration"]), VIDEO_SECONDS)
        for target, position in seen["positions"]:
            if abs(position - target) > 1:
                raise Failure(f"a seek to {target} s went to {position} s")
        answers = [
            params["response"]
            for name, params in events
            if name == "Network.responseReceived" and params["response"]["url"].endswith("video.webm")
        ]
        expect("statuses", {answer["status"] for answer in answers}, {206})
        expect("protocols", {answer["protocol"] for answer in answers}, {"h2"})
        size = (self.directory / "site/video.webm").stat().st_size
        starts = set()
        for answer in answers:
            headers = {name.lower(): value for name, value in answer["headers"].items()}
            found = re.fullmatch(rf"bytes (\d+)-\d+/{size}", headers["content-range"])
            if not found:
                raise Failure(f"Content-Range: {headers['content-range']}")
            starts.add(int(found[1]))
        if len(starts) < 3:
            raise Failure(f"ranges from {sorted(starts)} only: the seeks asked for nothing")
        return f"{len(seen['positions'])} seeks, {seen['frames']} frames, {len(answers)} answers 206 by h2"

    def case_websocket(self) -> str:
        """Messages both ways, text and binary, up to 1 MiB, and the server's close."""
        self.browser.get(self.url("application"))
        seen = run_script(
            self.browser,
            """const socket = new WebSocket(args[0]);
            socket.binaryType = "arraybuffer";
            const waiting = [], got = [];
            let closed;
            const ended = new Promise(resolve => { closed = resolve; });
            socket.onmessage = ({data}) => waiting.length ? waiting.shift()[0](data) : got.push(data);
            socket.onclose = ({code, reason, wasClean}) => {
                closed([code, reason, wasClean]);
                for (const [, reject] of waiting) reject(`closed: ${code} ${reason}`);
            };
            const next = () => got.length ? Promise.resolve(got.shift())
                : new Promise((resolve, reject) => waiting.push([resolve, reject]));
            const greeting = await next();
            socket.send("grüße");
            const text = await next();
            let inOrder = true;
            for (let n = 0; n < 200; n++) socket.send(`message ${n}`);
            for (let n = 0; n < 200; n++) inOrder &&= await next() === `message ${n}`;
            const large = [];
            for (const size of [70000, 1 << 20]) {
                const sent = new Uint8Array(size);
                for (let at = 0; at < size; at += 65536) crypto.getRandomValues(sent.subarray(at, at + 65536));
                socket.send(sent);
                const back = new Uint8Array(await next());
                large.push(back.length === size && back.every((byte, n) => byte === sent[n]));
            }
            socket.send("bye");
            return {greeting, text, inOrder, large, close: await ended};""",
            self.url("echo", scheme="wss"),
        )
        wanted = {
            "greeting": "welcome",
            "text": "grüße",
            "inOrder": True,
            "large": [True, True],
            "close": [4001, "as you wish", True],
        }
        expect("the exchange", seen, wanted)
        events = network(self.browser)
        check_quiet(self.browser, events)
        answers = [p["response"]["status"] for name, p in events if name == "Network.webSocketHandshakeResponseReceived"]
        expect("the handshake's status", answers, [101])
        return "203 messages there and back, 1 MiB the largest"

    def case_events(self) -> str:
        """Each event is sent only after the browser has answered the one before: one held back would be the last."""
        self.browser.get(self.url("application"))
        seen = run_script(
            self.browser,
            """const source = new EventSource("/events"), got = [];
            return await new Promise((resolve, reject) => {
                const late = setTimeout(() => reject(`got ${got} only`), 20000);
                source.onmessage = ({data}) => {
                    got.push([data, source.readyState === EventSource.OPEN]);
                    fetch("/answer", {method: "POST", body: ""}).catch(reject);
                };
                source.addEventListener("over", () => {
                    source.close();
                    clearTimeout(late);
                    resolve(got);
                });
            });""",
        )
        expect("the events", seen, [[str(number), True] for number in range(EVENTS)])
        check_quiet(self.browser, network(self.browser))
        return f"{EVENTS} events, each answered before the next was sent"

    def case_upload(self) -> str:
        """A body of 64 MiB arrives whole, and portal does not keep it on the way."""
        self.browser.get(self.url("application"))
        application = self.exposed["application"]
        before = application.peak_memory()
        seen = run_script(
            self.browser,
            """const bytes = new Uint8Array(args[0]);
            for (let at = 0; at < bytes.length; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
            const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
            const hex = [...digest].map(byte => byte.toString(16).padStart(2, "0")).join("");
            const started = performance.now();
            const response = await fetch("/upload", {method: "POST", body: new Blob([bytes])});
            return {status: response.status, hex, answer: await response.text(), ms: performance.now() - started};""",
            UPLOAD,
        )
        expect("the status", seen["status"], 200)
        expect("the hash that the server saw", seen["answer"], seen["hex"])
        check_quiet(self.browser, network(self.browser))
        grown = application.peak_memory() - before
        if grown > UPLOAD_MEMORY:
            raise Failure(f"portal has grown by {grown >> 20} MiB")
        return f"{UPLOAD >> 20} MiB in {seen['ms'] / 1000:.1f} s, portal grew by {grown / (1 << 20):.1f} MiB"

    def case_end(self) -> str:
        """With the browser's connections still open, portal ends when told to; it has named its visitors."""
        for exposed in self.exposed.values():
            exposed.process.terminate()
        for name, exposed in self.exposed.items():
            expect(f"{name} ends with", exposed.stop(), 0)
            log = exposed.log.read_text()
            if not re.search(r"^127\.0\.0\.1:\d+: \d+ bytes received, \d+ sent", log, re.M):
                raise Failure(f"{name}: no line with a visitor's address: {log}")
            expect(f"{name}: panics", "panicked" in log, False)
        return "exit 0, visitors named"


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    binary, directory = sys.argv[1], Path(sys.argv[2])
    make_site(directory / "site")
    home = directory / "home"
    home.mkdir()
    passed, failed, began = 0, 0, time.monotonic()
    with ExitStack() as stack:
        exposed = {}
        targets = {
            "site": str(directory / "site"),
            "application": str(serve_application()),
            "echo": f"127.0.0.1:{serve_echo()}",
        }
        for name, target in targets.items():
            exposed[name] = Exposed(binary, directory, name, target)
            stack.callback(exposed[name].stop)
        trust(home / ".local/state/portal/authority/root.pem", home)
        browser = stack.enter_context(chromium(directory, home, "profile"))
        cases = Cases(browser, directory, exposed)
        print(f"   Chromium {browser.capabilities['browserVersion']}", flush=True)
        for name in ("no-trust", "assets", "video", "websocket", "events", "upload", "end"):
            started = time.monotonic()
            try:
                figure = getattr(cases, "case_" + name.replace("-", "_"))()
                passed += 1
                print(f"ok {name} ({time.monotonic() - started:.1f}s) {figure}", flush=True)
            except Exception as error:  # whatever a case dies of is that case's failure
                failed += 1
                print(f"FAILED {name}: {type(error).__name__}: {str(error)[:1500]}", flush=True)
                for each in exposed.values():
                    lines = each.log.read_text().splitlines()[-8:]
                    print("\n    ".join([f"  {each.log.name}:", *(line[:300] for line in lines)]), flush=True)
    print(f"   {time.monotonic() - began:.0f} s", flush=True)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
