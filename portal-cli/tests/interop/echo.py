"""Sends back what it gets, and the end after the end.

Usage: echo.py PORT
"""

import socket
import sys
import threading


def serve(flow: socket.socket) -> None:
    with flow:
        while piece := flow.recv(1 << 18):
            flow.sendall(piece)


listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
