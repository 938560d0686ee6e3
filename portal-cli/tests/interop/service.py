"""The services on the plain peer's overlay address, none of which knows of portal.

8080  HTTP: /N gives N bytes, a PUT gives the hash and the count of what came
8081  HTTP behind a PROXY protocol v2 header: gives the visitor's address and the public port
9000  the TCP commands of the end-to-end test
5353  UDP: sends back what it gets
"""

import hashlib
import http.server
import pathlib
import socket
import struct
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
from service import Commands, blocks  # noqa: E402

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


class Sized(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for block in blocks(size, size):
            self.wfile.write(block)

    def do_PUT(self) -> None:
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left and (data := self.rfile.read(min(left, 1 << 16))):
            digest.update(data)
            left -= len(data)
        answer = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


def read_exactly(conn: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        got = conn.recv(count - len(data))
        if not got:
            raise EOFError(f"{len(data)} of {count} bytes")
        data += got
    return data


def answer_behind_header(conn: socket.socket) -> None:
    with conn:
        try:
            head = read_exactly(conn, 16)
            length = struct.unpack("!H", head[14:])[0]
            body = read_exactly(conn, length)
            if head[:12] != SIGNATURE or head[12:14] != b"\x21\x11":
                text = f"no header of TCP over IPv4: {head!r}"
            else:
                ports = struct.unpack_from("!HH", body, 8)
                text = f"{socket.inet_ntoa(body[:4])} {socket.inet_ntoa(body[4:8])}:{ports[1]}"
            request = b""
            while b"\r\n\r\n" not in request:
                request += read_exactly(conn, 1)
            answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}"
            conn.sendall(answer.encode())
        except (OSError, EOFError) as error:
            print(f"{type(error).__name__}: {error}", flush=True)


def serve_headers(listener: socket.socket) -> None:
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=answer_behind_header, args=(conn,), daemon=True).start()


def serve_echo(sock: socket.socket) -> None:
    while True:
        data, sender = sock.recvfrom(4096)
        sock.sendto(data, sender)


def main() -> None:
    address = sys.argv[1]
    web = Server6((address, 8080), Sized)
    headers = socket.create_server((address, 8081), family=socket.AF_INET6)
    commands = socket.create_server((address, 9000), family=socket.AF_INET6, backlog=1024)
    echo = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    echo.bind((address, 5353))
    for target, args in ((web.serve_forever, ()), (serve_headers, (headers,)), (serve_echo, (echo,))):
        threading.Thread(target=target, args=args, daemon=True).start()
    print("serving", flush=True)
    Commands().serve(commands)


if __name__ == "__main__":
    main()
