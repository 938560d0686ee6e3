"""Checks a capture taken between relay and agent: nothing but WireGuard, and none of the visitor's bytes in clear.

Usage: wire.py CAPTURE RELAY_ADDRESS NAT_ADDRESS RELAY_PORT LEAST_BYTES MARKER
"""

import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HANDSHAKE_LENGTHS = {1: 148, 2: 92, 3: 64}
DATA = 4
LEAST_DATA, MOST_DATA = 32, 1500 - 28  # a keepalive; what an Ethernet frame holds after the IPv4 and UDP headers


def frames(capture: bytes) -> Iterator[bytes]:
    order = "<" if capture[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    link = struct.unpack_from(order + "I", capture, 20)[0]
    if link != 1:
        raise SystemExit(f"the capture's link type is {link}, not Ethernet")
    at = 24
    while at + 16 <= len(capture):
        kept, length = struct.unpack_from(order + "II", capture, at + 8)
        if kept != length:
            raise SystemExit("the capture has cut packets")
        yield capture[at + 16 : at + 16 + kept]
        at += 16 + kept


def main() -> None:
    path, relay, nat, port, least_bytes, marker = sys.argv[1:]
    ends = {relay, nat}
    types: Counter[int] = Counter()
    carried = 0
    for number, frame in enumerate(frames(Path(path).read_bytes()), 1):
        if marker.encode() in frame:
            raise SystemExit(f"packet {number}: the marker travels in clear")
        if frame[12:14] != b"\x08\x00":
            continue
        packet = frame[14:]
        source, target = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        if {source, target} != ends:
            continue
        where = f"packet {number} ({source} to {target})"
        if packet[9] != 17:
            raise SystemExit(f"{where}: IP protocol {packet[9]}, not UDP")
        if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
            raise SystemExit(f"{where}: fragmented")
        udp = packet[(packet[0] & 15) * 4 :]
        source_port, target_port, length = struct.unpack_from("!HHH", udp)
        if (source_port if source == relay else target_port) != int(port):
            raise SystemExit(f"{where}: UDP port {source_port} to {target_port}, not the relay's {port}")
        payload = udp[8:length]
        kind = payload[0] if payload[1:4] == b"\0\0\0" else 0
        if not 1 <= kind <= DATA:
            raise SystemExit(f"{where}: not WireGuard, begins with {payload[:4].hex()}")
        sane = LEAST_DATA <= len(payload) <= MOST_DATA if kind == DATA else len(payload) == HANDSHAKE_LENGTHS[kind]
        if not sane:
            raise SystemExit(f"{where}: a WireGuard type {kind} of {len(payload)} bytes")
        types[kind] += 1
        carried += len(payload) if kind == DATA else 0
    if not types[1] or not types[2]:
        raise SystemExit(f"no complete handshake in the capture: {dict(types)}")
    if types[DATA] <= 100 or carried < int(least_bytes):
        raise SystemExit(f"{types[DATA]} data packets with {carried} bytes: the traffic went another way")
    print(f"{types[1] + types[2]} handshake and {types[DATA]} data packets, {carried / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
