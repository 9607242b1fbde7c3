"""What a drill needs: the gateway's own part of a configuration, VMs, and a machine to cut off."""

import pathlib
import re
import subprocess
import sys

from compare import machine

SERVER = """
[server]
addresses = "127.0.0.1"
http = "off"
https = {https}
workers = 2
state_dir = "{folder}"

[tls]
default_certificate = "localhost"

[[tls.certificates]]
cert = "cert.pem"
key = "key.pem"
"""


class Namespace:
    """A machine of its own: a network namespace, and a cable to it."""

    NAME, CABLE, ITS_END, HERE, THERE = "foregate-drill", "fgdrill0", "fgdrill1", "10.203.0.1", "10.203.0.2"

    def __enter__(self):
        ip = self._ip
        subprocess.run(["ip", "netns", "delete", self.NAME], stderr=subprocess.DEVNULL, check=False)
        ip("netns", "add", self.NAME)
        ip("link", "add", self.CABLE, "type", "veth", "peer", "name", self.ITS_END, "netns", self.NAME)
        ip("address", "add", f"{self.HERE}/30", "dev", self.CABLE)
        ip("link", "set", self.CABLE, "up")
        ip("-n", self.NAME, "address", "add", f"{self.THERE}/30", "dev", self.ITS_END)
        ip("-n", self.NAME, "link", "set", self.ITS_END, "up")
        return self

    def __exit__(self, *_):
        self._ip("netns", "delete", self.NAME)

    def cut(self):
        """Nothing comes back from there, and nobody says so."""
        self._ip("-n", self.NAME, "route", "add", "blackhole", f"{self.HERE}/32")

    def mend(self):
        self._ip("-n", self.NAME, "route", "delete", "blackhole", f"{self.HERE}/32")

    @staticmethod
    def _ip(*words):
        subprocess.run(["ip", *words], check=True)


class Vm:
    def __init__(self, folder, number, illness, namespace=None):
        self.port, self.illness, self.log = machine.free_port(), illness, folder / f"vm{number}.log"
        self.host = namespace.THERE if namespace else "127.0.0.1"
        self.within = ["ip", "netns", "exec", namespace.NAME] if namespace else []
        self.log.touch()
        self.start()

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def start(self):
        words = [sys.executable, "-m", "drill.vm", self.address, self.illness, str(self.log)]
        self.process = subprocess.Popen(self.within + words)
        machine.wait_for(self.port, "a VM", self.host)

    def served(self):
        """(time, requests) of each moment."""
        return [(float(at), int(count)) for at, count in (line.split() for line in self.log.read_text().splitlines())]

    def end(self):
        self.process.kill()
        self.process.wait()


def result(load):
    """What a load generator has printed: requests, those that failed, and milliseconds."""
    out, _ = load.communicate()
    done, failed = map(int, re.search(r"(\d+) requests, (\d+) failed", out).groups())
    latency = re.search(r"p50 (\d+) p99 (\d+)", out)
    p50, p99 = (int(latency[1]) / 1000, int(latency[2]) / 1000) if latency else (0, 0)
    return done, failed, p50, p99


def memory(process):
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024
