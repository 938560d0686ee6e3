"""What a plain peer gets that opens connections into the tunnel by itself, towards the relay's overlay address.

Usage: knock.py RELAY_OVERLAY OWN_OVERLAY FOREIGN_SOURCE

FOREIGN_SOURCE is an address of the peer's machine that is not its overlay address. On what should not be, exits 1 with a
line that says it.
"""

import json
import socket
import struct
import sys
import time

PORTS = (2, 22, 80, 8080, 20010, 65535)
CONTROL = 1


def dial(relay: str, port: int, source: str, patience: float = 5) -> socket.socket:
    return socket.create_connection((relay, port), timeout=patience, source_address=(source, 0))


def expect_refusal(relay: str, own: str, port: int) -> float:
    start = time.monotonic()
    try:
        with dial(relay, port, own):
            raise SystemExit(f"port {port} of the relay takes a connection")
    except ConnectionRefusedError:
        return time.monotonic() - start


def say_hello(relay: str, own: str) -> str:
    """As an agent does, on the relay's control channel."""
    text = json.dumps({"type": "hello", "version": 1, "agent": "knock", "caps": []}).encode()
    with dial(relay, CONTROL, own) as conn:
        conn.sendall(struct.pack("!H", len(text)) + text)
        said = b""
        while got := conn.recv(1 << 16):
            said += got
    answer = json.loads(said[2 : 2 + struct.unpack_from("!H", said)[0]])
    if answer.get("type") != "goaway" or "plain WireGuard peer" not in answer.get("reason", ""):
        raise SystemExit(f"a plain peer's hello is answered with {answer}")
    return answer["code"]


def expect_silence(sock: socket.socket, what: str) -> None:
    sock.settimeout(0.5)
    try:
        got = sock.recv(2048)
    except TimeoutError:
        return
    raise SystemExit(f"{what} is answered with {got[:64]!r}")


def send_datagrams(relay: str, own: str) -> int:
    """To ports that stand for no visitor."""
    ports = (1, 53, 20012, 40000)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind((own, 0))
        for port in ports:
            sock.sendto(b"anybody?", (relay, port))
        expect_silence(sock, "a datagram")
    return len(ports)


def ping(relay: str, own: str) -> None:
    """The kernel adds the checksum."""
    echo = struct.pack("!BBHHH", 128, 0, 0, 0x7074, 1) + b"anybody?"
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.bind((own, 0))
        sock.connect((relay, 0))
        sock.send(echo)
        expect_silence(sock, "a ping")


def come_from(source: str, relay: str) -> None:
    try:
        with dial(relay, CONTROL, source, patience=1.5):
            raise SystemExit("the relay takes a connection from an address that is not the peer's")
    except TimeoutError:
        pass


def main() -> None:
    relay, own, foreign = sys.argv[1:]
    slowest = max(expect_refusal(relay, own, port) for port in PORTS)
    code = say_hello(relay, own)
    datagrams = send_datagrams(relay, own)
    ping(relay, own)
    come_from(foreign, relay)
    print(
        f"{len(PORTS)} ports refused within {slowest * 1000:.0f} ms, a hello with {code}; no answer to {datagrams} "
        "datagrams, a ping and what comes from another address"
    )


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
