"""The visitor's side of the TCP cases: talks to service.py through a public port and checks what comes back.

Prints a figure on success; on failure exits 1 with one line that says why.
"""

import argparse
import asyncio
import hashlib
import secrets
import socket
import time

from service import LINGER_RESET, blocks, hash_to_eof, read_line

WAIT = 30.0  # seconds without a single byte before a call gives up


def dial(args: argparse.Namespace, command: str) -> socket.socket:
    conn = socket.create_connection((args.host, args.port), timeout=args.wait)
    conn.sendall(command.encode() + b"\n")
    return conn


def expect(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise SystemExit(f"{what}: got {got!r}, expected {wanted!r}")


def expected_hash(size: int, seed: int) -> str:
    digest = hashlib.sha256()
    for block in blocks(seed, size):
        digest.update(block)
    return f"{digest.hexdigest()} {size}"


def rate(size: int, start: float) -> str:
    return f"{size / 1e6 / (time.monotonic() - start):.0f} MB/s"


def down(args: argparse.Namespace) -> str:
    start = time.monotonic()
    with dial(args, f"down {args.size} {args.seed} {args.rate}") as conn:
        got = hash_to_eof(conn)
    figure = rate(args.size, start)
    expect("hash of the download", got, expected_hash(args.size, args.seed))
    return figure


def up(args: argparse.Namespace) -> str:
    start = time.monotonic()
    with dial(args, "up") as conn:
        for block in blocks(args.seed, args.size):
            conn.sendall(block)
        conn.shutdown(socket.SHUT_WR)
        answer = read_line(conn)
    figure = rate(args.size, start)
    expect("hash the server saw", answer, expected_hash(args.size, args.seed))
    return figure


def echo(args: argparse.Namespace) -> str:
    text = (args.text or secrets.token_hex(16)).encode()
    with dial(args, "echo") as conn:
        expect("greeting", read_line(conn), "ready")
        conn.sendall(text)
        conn.shutdown(socket.SHUT_WR)
        got = b""
        while data := conn.recv(1 << 16):
            got += data
    expect("echo", got, text)
    return f"{len(text)} bytes"


def idle(args: argparse.Namespace) -> str:
    """A connection says something, then nothing for a while, then something again."""
    with dial(args, "echo") as conn:
        expect("greeting", read_line(conn), "ready")
        for text in (b"before\n", b"after\n"):
            conn.sendall(text)
            expect("echo", read_line(conn), text.decode().strip())
            if text == b"before\n":
                time.sleep(args.hold)
    return f"{args.hold:.0f} s"


def half_close(args: argparse.Namespace) -> str:
    """FIN in one direction leaves the other open, both ways round."""
    args.size, args.seed = 3_000_001, 7
    up(args)  # the answer comes only after the client's end of data
    name = secrets.token_hex(8)
    with dial(args, f"close-first {name}") as conn:
        expect("line before the server's end of data", read_line(conn), "done")
        expect("server's end of data", conn.recv(1), b"")
        for block in blocks(args.seed, args.size):
            conn.sendall(block)
        conn.shutdown(socket.SHUT_WR)
    expect("hash the server saw after closing its side", result(args, name), expected_hash(args.size, args.seed))
    return "client first, server first"


def result(args: argparse.Namespace, name: str) -> str:
    with dial(args, f"result {name}") as conn:
        return read_line(conn)


def reset(args: argparse.Namespace) -> str:
    """RST at one end is RST at the other, both ways round."""
    with dial(args, "reset") as conn:
        expect("greeting", read_line(conn), "ready")
        conn.sendall(b"!")
        try:
            got = conn.recv(1)
        except ConnectionResetError:
            pass
        else:
            raise SystemExit(f"the server reset the connection, the client saw {got!r} instead of ECONNRESET")
    name = secrets.token_hex(8)
    with dial(args, f"watch {name}") as conn:
        expect("greeting", read_line(conn), "ready")
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    expect("what the server saw after the client's reset", result(args, name), "reset")
    return "server, client"


async def many_at_once(host: str, port: int, count: int) -> str:
    """Nobody sends a payload before everybody's connection has been answered by the server."""
    payloads = {secrets.token_bytes(16 * 1024) for _ in range(count)}
    all_open = asyncio.Event()
    opened, opened_at = 0, 0.0

    async def one(payload: bytes) -> None:
        nonlocal opened, opened_at
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"echo\n")
        expect("greeting", await reader.readexactly(6), b"ready\n")
        opened += 1
        if opened == count:
            opened_at = time.monotonic()
            all_open.set()
        await all_open.wait()
        writer.write(payload)
        if await reader.readexactly(len(payload)) != payload:
            raise SystemExit("a connection got another payload than its own")
        writer.write_eof()
        expect("end of data", await reader.read(), b"")
        writer.close()

    start = time.monotonic()
    try:
        await asyncio.wait_for(asyncio.gather(*map(one, payloads)), WAIT)
    except asyncio.TimeoutError:
        raise SystemExit(f"{opened} of {count} connections had been answered after {WAIT:.0f} s") from None
    return f"{count} open after {opened_at - start:.1f} s, exchanged in {time.monotonic() - opened_at:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=("down", "up", "echo", "idle", "half-close", "reset", "many"))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--size", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=0)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--text", default="")
    parser.add_argument("--hold", type=float, default=0)
    parser.add_argument("--wait", type=float, default=WAIT)
    args = parser.parse_args()
    cases = {"down": down, "up": up, "echo": echo, "idle": idle, "half-close": half_close, "reset": reset}
    try:
        if args.case == "many":
            print(asyncio.run(many_at_once(args.host, args.port, args.count)))
        else:
            print(cases[args.case](args))
    except (OSError, EOFError) as error:
        raise SystemExit(f"{args.case}: {type(error).__name__}: {error}") from None


if __name__ == "__main__":
    main()
