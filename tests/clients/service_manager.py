"""A small service manager: gives its service sockets as systemd does, keeps those it is asked to, and starts the service
anew after a crash.

    service_manager.py GIVES PROGRAM run --config FILE ...

GIVES is how many sockets it binds itself for the port `http` of the configuration, or "other" for one on a port of which
that says nothing. Beside FILE it has `notify`, where it is told, and `kept`, the names of what it keeps. After a crash it
waits until there is a file `again`.
"""

import fcntl
import os
import re
import select
import signal
import socket
import sys
import time
from pathlib import Path

FIRST = 3


def listen(port: int, share: bool) -> int:
    listener = socket.socket()
    if share:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener.detach()


def start(command: list[str], notify: Path, sockets: list[tuple[str, int]]) -> int:
    pid = os.fork()
    if pid:
        return pid
    # Out of the way of the numbers they get.
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for _, number in sockets]
    for place, number in enumerate(high):
        os.dup2(number, FIRST + place, inheritable=True)
        os.close(number)
    os.environ["NOTIFY_SOCKET"] = str(notify)
    if sockets:
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = str(len(sockets))
        os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in sockets)
    os.execv(command[0], command)


def main() -> None:
    gives, command = sys.argv[1], sys.argv[2:]
    config = Path(command[command.index("--config") + 1])
    notify, kept, again = (config.parent / name for name in ("notify", "kept", "again"))
    ears = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ears.bind(str(notify))
    if gives == "other":
        own = [("foregate.socket", listen(0, False))]
    else:
        port = int(re.search(r"^http = (\d+)$", config.read_text(), re.M).group(1))
        own = [("foregate.socket", listen(port, int(gives) > 1)) for _ in range(int(gives))]
    store: list[tuple[str, int]] = []

    pid = start(command, notify, own)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    while True:
        if select.select([ears], [], [], 0.02)[0]:
            text, files, _, _ = socket.recv_fds(ears, 4096, 253)
            said = dict(line.split("=", 1) for line in text.decode().splitlines())
            if "FDSTORE" in said:
                known = {os.fstat(number).st_ino for _, number in store}
                store += [(said["FDNAME"], file) for file in files if os.fstat(file).st_ino not in known]
            if "FDSTOREREMOVE" in said:
                for _, number in filter(lambda one: one[0] == said["FDNAME"], store):
                    os.close(number)
                store = [one for one in store if one[0] != said["FDNAME"]]
            # Whoever reads meanwhile finds it whole.
            whole = kept.with_suffix(".new")
            whole.write_text("".join(f"{name}\n" for name, _ in store))
            whole.rename(kept)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            continue
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        while not again.exists():
            time.sleep(0.02)
        again.unlink()
        pid = start(command, notify, own + store)


main()
