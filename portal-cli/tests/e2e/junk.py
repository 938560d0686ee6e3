"""A visitor who speaks TLS badly: junk before, within and behind a ClientHello. Each time the other end must hang up.

Usage: junk.py HOST PORT SERVER_NAME... Prints a figure; exits 1 with a line that says why if one was left open.
"""

import random
import socket
import ssl
import sys
from collections.abc import Iterator

from service import LINGER_RESET

ROUNDS = 12


def client_hello(name: str) -> bytes:
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


def junk(dice: random.Random, hello: bytes) -> Iterator[tuple[str, bytes]]:
    noise = dice.randbytes(dice.randrange(100, 40_000))
    yield "noise alone", b"\x80" + noise
    yield "noise behind a ClientHello", hello + noise
    yield "a record of noise behind a ClientHello", hello + b"\x17\x03\x03\x40\x00" + dice.randbytes(0x4000)
    yield "a record longer than TLS allows", hello + b"\x17\x03\x03\xff\xff" + dice.randbytes(0xFFFF)
    yield "an alert behind a ClientHello", hello + b"\x15\x03\x03\x00\x02\x02\x28"
    yield "a second ClientHello", hello + hello
    yield "plain HTTP behind a ClientHello", hello + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100
    # Behind the server name, which the relay needs to find the agent, something is not as it was.
    changed = bytearray(hello)
    changed[9] = 0x7F
    yield "a ClientHello with another version", bytes(changed) + noise


def hangs_up(host: str, port: int, data: bytes) -> bool:
    """Whether the other end has closed or reset."""
    with socket.create_connection((host, port), timeout=15) as conn:
        try:
            conn.sendall(data)
            while conn.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except (ConnectionResetError, BrokenPipeError):
            pass
    return True


def main() -> None:
    host, port, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    dice = random.Random(4)
    count = 0
    for _ in range(ROUNDS):
        for name in names:
            hello = client_hello(name)
            for what, data in junk(dice, hello):
                if not hangs_up(host, port, data):
                    raise SystemExit(f"{what}: 15 s later the connection is still open")
                count += 1
            # Gone in the middle, cleanly and not.
            for reset in (False, True):
                with socket.create_connection((host, port), timeout=15) as conn:
                    conn.sendall(hello[: dice.randrange(1, len(hello))] if dice.random() < 0.5 else hello)
                    if reset:
                        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
                count += 1
    print(f"{count} visitors with junk hung up on")


if __name__ == "__main__":
    main()
