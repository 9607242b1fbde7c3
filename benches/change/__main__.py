"""What changes cost visitors: reloads, rejected reloads, upgrades and failed upgrades under load, beside rivals.

    scripts/change                        # the gateway: reloads, rejected ones, upgrades, failed ones
    scripts/change --rivals               # and as many reloads of nginx, Caddy and Traefik
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from compare import machine, proxies

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Longer than a download of the visitors takes.
DRAIN = 13
# Users of each version, and requests a second of each of them.
USERS, RATE = 100, 10
CONFIG = """
[server]
addresses = "127.0.0.1"
http = {http}
https = {https}
redirect_to_https = false
workers = 2
state_dir = "{folder}/state"
timeouts = {{ drain = "{drain}s" }}

[admin]
listen = "unix:{folder}/admin.sock"

[tls]
default_certificate = "localhost"

[[tls.certificates]]
cert = "{cert}.pem"
key = "{key}.pem"

[sites.all]
hosts = "*"
routes = [{{ paths = "/ws", pool = "ws" }}{route}]
pool = "vm"

[pools.vm]
backends = [{backends}]

[pools.ws]
backends = ["127.0.0.1:{ws}"]
"""


class Foregate:
    versions = ["h1", "h2", "h3"]
    foreign = ["curl h1", "curl h2", "curl h3", "aioquic", "ws1", "ws2", "ws3", "downloads"]

    def __init__(self, scene, release, sites):
        self.scene, self.folder = scene, scene.folder
        self.sites = "".join(proxies.SITE.format(number, scene.origin) for number in range(sites))
        self.took = []
        self.program = self.folder / "program"
        self.itself = self.folder / "itself"
        if not self.itself.exists():
            shutil.copy(release / "foregate", self.itself)
        self.install_itself()
        self.http, self.https, self.more = (machine.free_port() for _ in range(3))
        self.ws = echo(self.folder)
        (self.folder / "other").mkdir(exist_ok=True)
        machine.make_certificate(self.folder / "other", "DNS:localhost,DNS:*.sites.test,DNS:other.test")
        self.file = self.folder / "change.toml"
        self.write(0)
        self.log = (self.folder / "gateway.log").open("wb")
        self.process = subprocess.Popen([self.program, "run", "--config", self.file], stdout=self.log, stderr=self.log)
        machine.wait_for(self.https, "the gateway")
        machine.wait_for_answer(f"http://localhost:{self.http}/1k", "the gateway")

    def write(self, number, rest=""):
        """Each time something else has changed: a route, a VM, the certificate, a port."""
        on = [bool(number & (1 << bit)) for bit in range(4)]
        origin = self.scene.origin
        one = f'{{ address = "127.0.0.1:{origin}", name = "a" }}'
        two = f', {{ address = "localhost:{origin}", name = "b" }}'
        self.file.write_text(
            CONFIG.format(
                http=f"[{self.http}, {self.more}]" if on[3] else self.http,
                https=self.https,
                folder=self.folder,
                drain=DRAIN,
                cert="other/cert" if on[2] else "cert",
                key="other/key" if on[2] else "key",
                route=', { paths = "=/robots.txt", respond = { status = 200, body = "x" } }' if on[0] else "",
                backends=one + (two if on[1] else ""),
                ws=self.ws[1],
            )
            + self.sites
            + rest
        )

    def operate(self, *words, well=True):
        out = subprocess.run([self.itself, *words, "--config", self.file], capture_output=True, text=True)
        if (out.returncode == 0) != well:
            raise SystemExit(f"{words}: {out.stdout}{out.stderr}")
        return out.stdout + out.stderr

    def reload(self, number):
        # One thing after the other: a Gray code.
        self.write(number ^ number >> 1)
        self.took.append(json.loads(self.operate("reload", "--json"))["took_ms"])

    def reject(self, number):
        self.write(number ^ number >> 1, rest=f"[oops{number}]\n")
        self.operate("reload", well=False)
        self.write(number ^ number >> 1)

    def upgrade(self, number):
        self.install_itself()
        self.operate("upgrade")
        if number == 1:
            early = self.operate("upgrade", well=False)
            print(f"    too early: {early.strip()}", file=sys.stderr)
        while json.loads(self.operate("status", "--json"))["predecessor_drains_s"] is not None:
            time.sleep(0.1)

    def upgrade_in_vain(self, number):
        new = self.folder / "new"
        new.unlink(missing_ok=True)
        new.write_bytes([b"#!/bin/sh\nexit 3\n", b"#!/bin/sh\nkill -9 $$\n", b"nonsense"][number % 3])
        new.chmod(0o755)
        new.rename(self.program)
        self.operate("upgrade", well=False)
        self.install_itself()

    def install_itself(self):
        # A link: copying a program takes more of the machine than having it take over.
        new = self.folder / "new"
        new.unlink(missing_ok=True)
        new.hardlink_to(self.itself)
        new.rename(self.program)

    def complaints(self):
        lines = (self.folder / "gateway.log").read_text().splitlines()
        return [line for line in lines if " WARN " in line or " ERROR " in line]

    def end(self):
        # One that took over is no child of this process. A second signal would cut its drain short.
        subprocess.run(["pkill", "-TERM", "-f", str(self.file)], check=False)
        while subprocess.run(["pgrep", "-f", str(self.file)], capture_output=True).returncode == 0:
            time.sleep(0.2)
        self.process.wait()
        self.ws[0].kill()


class Rival:
    """One that reloads in the way its manual says, and loses or gets a route each time."""

    foreign = ["curl h1", "curl h2", "downloads"]

    def __init__(self, scene):
        self.scene = scene
        self.name = type(self).__name__.lower()
        self.proxy = scene.start(self.name)
        self.https, self.versions = self.proxy.https, sorted(self.proxy.versions)
        if "h3" in self.versions:
            self.foreign = ["curl h1", "curl h2", "curl h3", "aioquic", "downloads"]
        self.file = scene.folder / self.config
        self.text = self.file.read_text()
        assert self.place in self.text

    def reload(self, number):
        new = self.file.with_suffix(".new")
        new.write_text(self.text.replace(self.place, self.route + self.place) if number % 2 else self.text)
        new.rename(self.file)
        self.tell()

    def end(self):
        self.scene.end(self.proxy)


class Nginx(Rival):
    config, place = "nginx.conf", "        location / {"
    route = "        location /robots.txt {\n            return 200;\n        }\n"

    def tell(self):
        self.proxy.process.send_signal(signal.SIGHUP)


class Caddy(Rival):
    config, place = "Caddyfile", "\treverse_proxy "
    route = "\trespond /robots.txt 200\n"

    def __init__(self, scene):
        # Its manual's way needs its administration, which it does without in the benchmarks.
        self.admin = f"localhost:{machine.free_port()}"
        scene.altered["Caddyfile"] = lambda text: text.replace("admin off", f"admin {self.admin}")
        super().__init__(scene)

    def tell(self):
        program = self.scene.venv / "bin" / "caddy"
        words = [program, "reload", "--config", self.file, "--adapter", "caddyfile", "--address", self.admin]
        subprocess.run(words, check=True, capture_output=True)


class Traefik(Rival):
    config, place = "traefik-routes.yml", "    plain:\n"
    route = "    robots:\n      entryPoints: [secure]\n      rule: \"Path(`/robots.txt`)\"\n      service: hanging\n      tls: {}\n"

    def __init__(self, scene):
        scene.altered["traefik.yml"] = lambda text: text.replace("watch: false", "watch: true")
        super().__init__(scene)

    def tell(self):
        """It watches its file."""


RIVALS = [Nginx, Caddy, Traefik]


def echo(folder):
    port = machine.free_port()
    process = subprocess.Popen([sys.executable, "-m", "change.echo", str(port)])
    machine.wait_for(port, "the WebSocket VM")
    return process, port


class Users:
    """Generators of load that ask so often whatever the answers do, until they are told to stop."""

    def __init__(self, release, versions, port):
        self.processes = {}
        for version in versions:
            program = [release / "h3load"] if version == "h3" else [release / "tlsload", "browsers", version]
            words = [f"https://localhost:{port}/1k", USERS]
            words += [1, 3600, "browsers", RATE] if version == "h3" else [3600, RATE]
            self.processes[version] = subprocess.Popen(
                [str(word) for word in program + words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )

    def results(self):
        for process in self.processes.values():
            process.send_signal(signal.SIGINT)
        results = {}
        for version, process in self.processes.items():
            out, err = process.communicate(timeout=60)
            done, failed, again = (int(number) for number in re.findall(r"(\d+) (?:requests|failed|again)", out))
            p99, most = (int(re.search(rf"{name} (\d+)", out)[1]) / 1000 for name in ("p99", "p99.9"))
            why = collections.Counter(line for line in err.splitlines())
            results[version] = {"done": done, "failed": failed, "again": again, "p99": p99, "p99.9": most, "why": why}
        return results


class Visitors:
    """Clients of others, in processes of their own."""

    def __init__(self, kinds, port):
        self.processes = {}
        for kind in kinds:
            words = [sys.executable, "-m", "change.visitors", kind, str(port)]
            self.processes[kind] = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def results(self):
        for process in self.processes.values():
            process.stdin.close()
        return {kind: json.loads(process.stdout.read()) for kind, process in self.processes.items()}


def drill(title, subject, release, calm, change, count, pause):
    # The others are there in the calm time too: they take their share of the machine.
    visitors = Visitors(subject.foreign, subject.https)
    time.sleep(2)
    users = Users(release, subject.versions, subject.https)
    time.sleep(calm)
    before = users.results()
    users = Users(release, subject.versions, subject.https)
    time.sleep(2)
    begun = time.monotonic()
    for number in range(1, count + 1):
        change(number)
        time.sleep(pause)
    took = time.monotonic() - begun
    time.sleep(1)
    for kind, result in {**users.results(), **visitors.results()}.items():
        p99 = f"{result['p99']:.1f} ms" if kind in before else "-"
        ratio = f"{result['p99'] / before[kind]['p99']:.2f}" if kind in before else "-"
        if kind in before:
            print(f"    {kind}: p99.9 {before[kind]['p99.9']:.1f} -> {result['p99.9']:.1f} ms", file=sys.stderr)
        cells = [title, f"{count} in {took:.0f} s", kind, f"{result['done']:,}", result["failed"], result["again"], p99, ratio]
        print("|", " | ".join(map(str, cells)), "|", flush=True)
        for why, times in result["why"].items():
            print(f"    {kind}: {times} x {why}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(prog="scripts/change", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [rival.__name__.lower() for rival in RIVALS]
    parser.add_argument("--rivals", nargs="*", choices=names, help="as many reloads of these, or of all")
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--rejected", type=int, default=50)
    parser.add_argument("--upgrades", type=int, default=20)
    parser.add_argument("--failed", type=int, default=10)
    parser.add_argument("--sites", type=int, default=0, help="that many more sites, which nobody asks for")
    parser.add_argument("--calm", type=float, default=10, help="seconds before the changes")
    parser.add_argument("--no-build", action="store_true")
    options = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    if not options.no_build:
        packages = ["--package", "foregate", "--package", "foregate-bench"]
        subprocess.run(["cargo", "build", "--release", *packages], cwd=ROOT, check=True)
    venv = target / "bench-venv"
    rivals = [] if options.rivals is None else options.rivals or names
    proxies.install(rivals, venv)
    os.environ["PYTHONPATH"] = str(ROOT / "benches")
    print("| Change | How many | Visitors | Done | Lost | Again | p99 | to calm |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="foregate-change-") as name:
        scene = proxies.Scene(pathlib.Path(name), target / "release", venv)
        with contextlib.ExitStack() as closing:
            closing.callback(scene.stop)
            for title, change, count, pause in [
                ("reload", "reload", options.reloads, 0.2),
                ("rejected reload", "reject", options.rejected, 0.2),
                ("upgrade", "upgrade", options.upgrades, 0.5),
                ("failed upgrade", "upgrade_in_vain", options.failed, 0.2),
            ]:
                if count:
                    subject = Foregate(scene, target / "release", options.sites)
                    drill(title, subject, target / "release", options.calm, getattr(subject, change), count, pause)
                    subject.end()
                    if subject.took:
                        middle, most = statistics.median(subject.took), max(subject.took)
                        print(f"    a reload took {middle:.0f} ms, {most} at most", file=sys.stderr)
                    for line in subject.complaints():
                        print(f"    the gateway: {line}", file=sys.stderr)
            for rival in RIVALS:
                if rival.__name__.lower() not in rivals:
                    continue
                subject = rival(scene)
                title = f"reload of {subject.name} {subject.proxy.version}"
                drill(title, subject, target / "release", options.calm, subject.reload, options.reloads, 0.2)
                subject.end()


if __name__ == "__main__":
    main()
