"""Has Bash run a script in the guest, prints what it says and ends as it ends.

Usage: guest.py SOCKET SECONDS SCRIPT
"""

import base64
import re
import secrets
import socket
import sys
import time


def main() -> None:
    path, seconds, script = sys.argv[1:]
    packed = base64.b64encode(script.encode()).decode()
    mark = secrets.token_hex(8)
    deadline = time.monotonic() + float(seconds)
    said = b""
    with socket.socket(socket.AF_UNIX) as conn:
        conn.settimeout(float(seconds))
        conn.connect(path)
        # The guest reads one line.
        conn.sendall(f'bash -c "$(echo {packed} | base64 -d)"; echo {mark} $?\n'.encode())
        while not (end := re.search(rb"%s (\d+)\n" % mark.encode(), said)):
            conn.settimeout(max(deadline - time.monotonic(), 0.001))
            got = conn.recv(1 << 16)
            if not got:
                raise SystemExit("the guest has ended")
            said += got
    code = int(end[1])
    # The guest has one line for both; what a failure says is for whoever looks into it.
    out = sys.stderr if code else sys.stdout
    out.buffer.write(said[: end.start()])
    out.flush()
    sys.exit(code)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        raise SystemExit(f"the guest: {type(error).__name__}: {error}") from None
