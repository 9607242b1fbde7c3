"""What the operating system tells of processes, ports and itself."""

import os
import pathlib
import re
import selectors
import socket
import subprocess
import threading
import time
import urllib.request

TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    """A port that is free for TCP and UDP alike."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_for(port, who, host="127.0.0.1"):
    def listens():
        with socket.socket() as probe:
            return probe.connect_ex((host, port)) == 0

    _wait_until(listens, f"{who} does not listen on port {port}")


def wait_for_answer(url, who):
    """Some listen before they know what to answer."""

    def answers():
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return True
        except OSError:
            return False

    _wait_until(answers, f"{who} does not answer {url}")


def _wait_until(happens, complaint):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if happens():
            return
        time.sleep(0.02)
    raise SystemExit(complaint)


class Hanging:
    """A VM that takes connections and requests and never says anything."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        waiting = selectors.DefaultSelector()
        waiting.register(self.listener, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is self.listener:
                    waiting.register(self.listener.accept()[0], selectors.EVENT_READ)
                elif not _received(key.fileobj):
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()


def _received(connection):
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def family(pid):
    """A process and its children."""
    found = [pid]
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = _stat(entry.name)
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def cpu(pid):
    """User and system seconds of a process and its children so far."""
    return sum(int(fields[11]) + int(fields[12]) for fields in map(_stat, family(pid))) / TICKS


def memory(pid):
    """KiB of memory that are a process's and its children's own, with their share of what is common."""
    total = 0
    for member in family(pid):
        rollup = pathlib.Path(f"/proc/{member}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[1])
    return total


def kernel_memory():
    """KiB of the kernel's own: sockets, timers, page tables, whoever they are for."""
    info = pathlib.Path("/proc/meminfo").read_text()
    return sum(int(value) for value in re.findall(r"^(?:Slab|PageTables|KernelStack):\s+(\d+)", info, re.MULTILINE))


def make_certificate(folder, names):
    """A self-signed P-256 certificate for these names: cert.pem and key.pem."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "30", "-subj", "/CN=localhost",
         "-addext", f"subjectAltName={names}"],
        check=True, capture_output=True,
    )


def describe():
    """The machine in one line."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.MULTILINE)
    system = pathlib.Path("/etc/os-release").read_text()
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', system, re.MULTILINE)
    memory_kib = int(re.search(r"^MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)[1])
    return (
        f"{os.cpu_count()} x {model[1] if model else os.uname().machine}, {memory_kib >> 20} GiB, "
        f"{name[1] if name else 'Linux'}, Linux {os.uname().release}"
    )


def _stat(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
