"""VMs found by DNS, in a network namespace of its own: a DNS server on port 53, three VMs and the gateway.

Run as: unshare --map-root-user --net --mount python3 discover.py GATEWAY
"""

import http.client
import http.server
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from report import say

CONFIG = """
[server]
addresses = ["127.0.0.1"]
http = 8000
https = "off"
state_dir = "{folder}/state"
[sites.a]
hosts = "vms.test"
pool = "vms"
[pools.vms]
discover = {{ dns = "vms.lan:8080", interval = "30s" }}
sticky = {{}}
[sites.b]
hosts = "services.test"
pool = "services"
[pools.services]
discover = {{ dns = "_http._tcp.lan" }}
health = {{ tcp = {{}}, interval = "100ms", rise = 1, fall = 1 }}
[sites.c]
hosts = "nobody.test"
pool = "nobody"
[pools.nobody]
discover = {{ dns = "nobody.lan:80" }}
"""


class Dns:
    """Answers from `zone`: {(name, kind): [data]}; with `broken` it fails at everything."""

    A, SRV = 1, 33

    def __init__(self):
        self.zone, self.broken = {}, False
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            question, client = self.socket.recvfrom(1500)
            self.socket.sendto(self.answer(question), client)

    def answer(self, question):
        at, labels = 12, []
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode().lower())
            at += 1 + question[at]
        (kind,) = struct.unpack("!H", question[at + 1 : at + 3])
        name = ".".join(labels)
        known = any(owner == name for owner, _ in self.zone)
        records = [] if self.broken else self.zone.get((name, kind), [])
        code = 2 if self.broken else 0 if known else 3
        head = question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(records), 0, 0)
        # Each record names its owner by a pointer to the question, and is valid for a second.
        body = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 1, len(data)) + data for data in records)
        return head + question[12 : at + 5] + body

    def addresses(self, name, *lasts):
        self.zone[name, Dns.A] = [bytes([127, 0, 0, last]) for last in lasts]

    def services(self, name, *services):
        def encoded(target):
            return b"".join(bytes([len(label)]) + label.encode() for label in target.split(".")) + b"\0"

        self.zone[name, Dns.SRV] = [
            struct.pack("!HHH", priority, weight, port) + encoded(target)
            for priority, weight, port, target in services
        ]


class Vm(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        last = self.server.server_address[0].rsplit(".")[-1]
        body = last.encode()
        self.send_response(200)
        if self.path == "/slow":
            self.send_header("content-length", "30")
            self.end_headers()
            for _ in range(30):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.2)
            return
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def vm(last, port=8080):
    server = http.server.ThreadingHTTPServer((f"127.0.0.{last}", port), Vm)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def get(host, path="/", cookie=None):
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=20)
    connection.request("GET", path, headers={"host": host, **({"cookie": cookie} if cookie else {})})
    response = connection.getresponse()
    body = response.read()
    return response.status, body.decode(), response.getheader("set-cookie")


def who(host, requests=12):
    """Whom so many requests meet, and the statuses there were."""
    answers = [get(host) for _ in range(requests)]
    return sorted({body for _, body, _ in answers}), sorted({status for status, _, _ in answers})


def until(what, holds):
    for _ in range(200):
        if holds():
            return
        time.sleep(0.1)
    raise TimeoutError(what)


def main():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--bind", folder / "resolv.conf", "/etc/resolv.conf"], check=True)
    (folder / "foregate.toml").write_text(CONFIG.format(folder=folder))
    dns = Dns()
    vms = {last: vm(last) for last in (11, 12, 13)}
    elsewhere = vm(12, 8081)
    dns.addresses("vms.lan", 11, 12)
    dns.addresses("one.lan", 11)
    dns.addresses("two.lan", 12)
    dns.services("_http._tcp.lan", (10, 1, 8080, "one.lan"), (20, 1, 8081, "two.lan"))
    log = open(folder / "log", "w+")
    gateway = subprocess.Popen(
        [sys.argv[1], "run", "--config", folder / "foregate.toml"], stdout=subprocess.PIPE, stderr=log
    )
    told = {}
    try:
        gateway.stdout.readline()
        told["first"] = who("vms.test")
        told["nobody"] = get("nobody.test")[0]

        # Somebody comes. Who was there keeps his clients.
        cookies = {}
        while len(cookies) < 2:
            _, body, cookie = get("vms.test")
            cookies[body] = cookie.split(";")[0]
        failed = []
        dns.addresses("vms.lan", 11, 12, 13)
        until("13 comes", lambda: (failed.extend(a for a in [get("vms.test")] if a[0] != 200), "13" in who("vms.test")[0])[1])
        told["more"] = who("vms.test")
        told["stuck"] = [get("vms.test", cookie=cookie)[1] == body for body, cookie in cookies.items()]

        # Somebody goes while it answers.
        slow = []
        downloads = [threading.Thread(target=lambda: slow.append(get("vms.test", "/slow", cookies["11"]))) for _ in range(2)]
        for download in downloads:
            download.start()
        time.sleep(0.5)
        dns.addresses("vms.lan", 12, 13)
        until("11 goes", lambda: "11" not in who("vms.test")[0])
        told["less"] = who("vms.test", 40)
        for download in downloads:
            download.join()
        told["slow"] = [(status, len(body)) for status, body, _ in slow]

        # Nobody knows anything any more.
        dns.broken = True
        time.sleep(3)
        told["broken"] = who("vms.test")
        dns.broken = False

        # Services: the lower priority is asked when the higher is gone.
        told["tier 0"] = who("services.test")
        vms[11].shutdown()
        vms[11].server_close()
        until("tier 1", lambda: get("services.test")[:2] == (200, "12"))
        told["tier 1"] = who("services.test")
        told["failed"] = failed
        gateway.terminate()
        told["exit"] = gateway.wait(timeout=30)
    finally:
        gateway.kill()
        elsewhere.shutdown()
        log.seek(0)
        told["log"] = log.read().splitlines()
    say(**told)


if __name__ == "__main__":
    main()
