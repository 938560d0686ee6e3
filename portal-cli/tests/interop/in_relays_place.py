"""Stands in a relay's place, over a WireGuard that is not ours: answers an agent on the control channel, then connects to the
service that it offers, which must send back what it gets.

    in_relays_place.py OWN-OVERLAY AGENTS-OVERLAY BYTES...

Its last line begins with "all" if every byte came back, and with "failed" if not.
"""

import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time

CONTROL, SERVICE = 1, 1024
PATIENCE = 120
# What a relay says of each visitor, as PROXY protocol v2: 198.51.100.7:40000 has come to 203.0.113.1:20010 by TCP.
VISITOR = b"\r\n\r\n\0\r\nQUIT\n" + struct.pack(
    ">BBH4s4sHH", 0x21, 0x11, 12, socket.inet_aton("198.51.100.7"), socket.inet_aton("203.0.113.1"), 40000, 20010
)


def frame(message):
    text = json.dumps(message).encode()
    return struct.pack(">H", len(text)) + text


def messages(channel):
    """What the agent says, until it hangs up."""
    waiting = b""
    while piece := channel.recv(65536):
        waiting += piece
        while len(waiting) >= 2 and len(waiting) >= 2 + (length := struct.unpack(">H", waiting[:2])[0]):
            yield json.loads(waiting[2 : 2 + length])
            waiting = waiting[2 + length :]


def answer(channel, granted):
    for message in messages(channel):
        if message["type"] == "hello":
            welcome = {"type": "welcome", "version": 1, "relay": "none of ours", "domain": "tunnel.test", "ttl_s": 75, "instance": 1}
            channel.sendall(frame(welcome))
        elif message["type"] == "register":
            lease = {"type": "granted", "id": message["id"], "lease": 1, "public": "tunnel.test:20010", "service_port": SERVICE}
            channel.sendall(frame(lease))
            granted.set()


def there_and_back(own, agent, length):
    sent = os.urandom(min(length, 1 << 20)) * max(1, length >> 20)
    with socket.create_connection((agent, SERVICE), PATIENCE, (own, 0)) as flow:
        def send():
            flow.sendall(VISITOR + sent)
            flow.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        digest, count = hashlib.sha256(), 0
        while piece := flow.recv(1 << 18):
            digest.update(piece)
            count += len(piece)
        sender.join()
    if digest.digest() != hashlib.sha256(sent).digest():
        raise OSError(f"of {len(sent)} bytes {count} came back, or others")


def main():
    own, agent, *lengths = sys.argv[1:]
    listener = socket.create_server((own, CONTROL), family=socket.AF_INET6)
    listener.settimeout(PATIENCE)
    granted = threading.Event()
    channel, _ = listener.accept()
    channel.settimeout(None)
    threading.Thread(target=answer, args=(channel, granted), daemon=True).start()
    if not granted.wait(PATIENCE):
        raise OSError("the agent has asked for nothing")
    # It learns of its lease when the answer has reached it.
    time.sleep(0.5)
    start = time.monotonic()
    for length in lengths:
        there_and_back(own, agent, int(length))
    print(f"all in {time.monotonic() - start:.1f} s")


try:
    main()
except OSError as error:
    print(f"failed: {error}")
    sys.exit(1)
