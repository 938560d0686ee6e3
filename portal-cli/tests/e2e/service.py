"""The services behind the NAT: HTTP, HTTPS, DNS over UDP, and a TCP server that takes one command a connection."""

import argparse
import functools
import hashlib
import http.server
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator

BLOCK = 1 << 16
LINGER_RESET = struct.pack("ii", 1, 0)  # close() sends RST instead of FIN


def blocks(seed: int, total: int) -> Iterator[memoryview]:
    """Deterministic pseudo-random bytes, too cheap to be the bottleneck.

    Every block starts elsewhere in the same random megabyte, so one that is lost, doubled or swapped changes the hash.
    """
    megabyte = random.Random(seed).randbytes(1 << 20)
    source = memoryview(megabyte + megabyte[:BLOCK])
    for number, begin in enumerate(range(0, total, BLOCK)):
        offset = number * 4099 % len(megabyte)
        yield source[offset : offset + min(BLOCK, total - begin)]


def read_line(conn: socket.socket) -> str:
    """One line, a byte at a time: what follows it belongs to the command."""
    line = b""
    while not line.endswith(b"\n") and (byte := conn.recv(1)):
        line += byte
    return line.decode().strip()


def hash_to_eof(conn: socket.socket) -> str:
    digest, count, buffer = hashlib.sha256(), 0, memoryview(bytearray(1 << 20))
    while got := conn.recv_into(buffer):
        digest.update(buffer[:got])
        count += got
    return f"{digest.hexdigest()} {count}"


class Commands:
    """down SIZE SEED RATE | up | echo | close-first ID | reset | watch ID | result ID"""

    def __init__(self) -> None:
        self.results: dict[str, str] = {}
        self.changed = threading.Condition()

    def keep(self, name: str, result: str) -> None:
        with self.changed:
            self.results[name] = result
            self.changed.notify_all()

    def serve(self, listener: socket.socket) -> None:
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=self.handle, args=(conn,), daemon=True).start()

    def handle(self, conn: socket.socket) -> None:
        try:
            with conn:
                command, *args = read_line(conn).split() or ["none"]
                getattr(self, "do_" + command.replace("-", "_"), self.do_none)(conn, *args)
        except OSError as error:
            print(f"{type(error).__name__}: {error}", flush=True)

    def do_none(self, conn: socket.socket, *_: str) -> None:
        conn.sendall(b"unknown command\n")

    def do_down(self, conn: socket.socket, size: str, seed: str, rate: str) -> None:
        """RATE is bytes a second, 0 for as fast as it goes."""
        start, sent = time.monotonic(), 0
        for block in blocks(int(seed), int(size)):
            conn.sendall(block)
            sent += len(block)
            if int(rate):
                time.sleep(max(0.0, start + sent / int(rate) - time.monotonic()))

    def do_up(self, conn: socket.socket) -> None:
        """Answers only after the client has shut down its write side."""
        conn.sendall(hash_to_eof(conn).encode() + b"\n")

    def do_echo(self, conn: socket.socket) -> None:
        conn.sendall(b"ready\n")
        while data := conn.recv(1 << 16):
            conn.sendall(data)

    def do_close_first(self, conn: socket.socket, name: str) -> None:
        conn.sendall(b"done\n")
        conn.shutdown(socket.SHUT_WR)
        self.keep(name, hash_to_eof(conn))

    def do_reset(self, conn: socket.socket) -> None:
        conn.sendall(b"ready\n")
        conn.recv(1)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)

    def do_watch(self, conn: socket.socket, name: str) -> None:
        """Keeps how the client's side ended."""
        conn.sendall(b"ready\n")
        try:
            while conn.recv(1 << 16):
                pass
            self.keep(name, "eof")
        except ConnectionResetError:
            self.keep(name, "reset")

    def do_result(self, conn: socket.socket, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: name in self.results, timeout=10)
            conn.sendall(self.results.get(name, "nothing").encode() + b"\n")


def dns_answer(query: bytes) -> bytes:
    """A: hN.example is 10.0.0.N. TXT: 1100 bytes, near the most that EDNS asks for."""
    end = query.index(b"\0", 12) + 5
    label, kind = query[13 : 13 + query[12]], struct.unpack_from("!H", query, end - 4)[0]
    if kind == 16:
        data = b"".join(bytes([219]) + bytes([97 + n]) * 219 for n in range(5))
    else:
        kind, data = 1, bytes([10, 0, 0, int(label[1:])])
    header = query[:2] + struct.pack("!HHHHH", 0x8580, 1, 1, 0, 0)
    return header + query[12:end] + struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(data)) + data


def serve_dns(sock: socket.socket) -> None:
    while True:
        query, peer = sock.recvfrom(4096)
        sock.sendto(dns_answer(query), peer)


class Files(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Gives back what it gets."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", required=True)
    parser.add_argument("--cert", required=True)
    parser.add_argument("--cert-key", required=True)
    args = parser.parse_args()
    files = functools.partial(Files, directory=args.files)
    plain = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), files)
    secure = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.cert, args.cert_key)
    # The handshake is left to the connection's own thread: a stalled client must not hold up the accept loop.
    secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind(("127.0.0.1", 53))
    commands = socket.create_server(("127.0.0.1", 9000), backlog=1024)
    for target in (plain.serve_forever, secure.serve_forever, functools.partial(serve_dns, dns)):
        threading.Thread(target=target, daemon=True).start()
    print("serving", flush=True)
    Commands().serve(commands)


if __name__ == "__main__":
    main()
