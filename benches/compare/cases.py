"""What is measured: the CPU time of all processes of a proxy for one request, at equal work, rounds interleaved."""

import dataclasses
import statistics

from . import machine
from .load import held

SIZES = {"0 B": "0", "1 KiB": "1k", "100 KiB": "100k", "10 MiB": "10m"}
VERSIONS = {"h1": "HTTP/1.1", "h1 TLS": "HTTP/1.1 with TLS", "h2": "HTTP/2", "h3": "HTTP/3"}
# Connections, and streams on each over HTTP/2 and HTTP/3.
MANY, FEW, WHOLE = (64, 10), (16, 4), (4, 1)
SHAPES = {"0 B": MANY, "1 KiB": MANY, "100 KiB": FEW, "10 MiB": WHOLE}
FRESH = 16
USERS, RATE = 1000, 10
# What goes on beside them: one client pulls bodies of 10 MiB, 500 handshakes/s, 100 requests that a VM never answers.
BESIDE = ("bulk", "handshakes", "a hanging VM")
SITES = (0, 10, 1000, 10000)
# How long idle connections are held, and how many handshakes a second the slowest should do before.
IDLE_SECONDS, IDLE_HANDSHAKES = 8, 400


@dataclasses.dataclass
class Row:
    """One case: a figure of each round for each proxy."""

    version: str
    what: str
    unit: str
    figures: dict

    def median(self, name):
        return statistics.median(self.figures[name]) if name in self.figures else None

    def spread(self, name):
        """How far the rounds are from each other, in percent of their median."""
        values = self.figures[name]
        return (max(values) - min(values)) / statistics.median(values) * 100


def noise(load, first, second, rounds, seconds):
    """The same program twice: what differs here is no difference."""
    pair = [(first, "first"), (second, "second")]
    return _row("h1", "1 KiB", pair, _ask(load, "h1", "1 KiB"), rounds, seconds)


def matrix(load, proxies, versions, rounds, seconds, sizes):
    """Each version with each size, for those who speak it."""
    for version in versions:
        sides = _speakers(proxies, version)
        for size in sizes:
            yield _row(version, size, sides, _ask(load, version, size), rounds, seconds)


def fresh(load, proxies, versions, rounds, seconds):
    """A connection for each request."""
    for resumed, what in ((False, "a connection with one request"), (True, "the same, resumed")):
        # Our HTTP/3 client asks for full handshakes only.
        for version in _encrypted(versions, without="h3" if resumed else None):

            def ask(proxy, seconds, name=_spoken(version), resumed=resumed):
                return load.fresh(name, _secure(proxy), seconds, FRESH, resumed)

            yield _row(version, what, _speakers(proxies, version), ask, rounds, seconds)


def idle(load, scene, proxies, versions, connections):
    """KiB of memory for each of so many idle connections, after one request. Each proxy is started anew: one that has
    been busy has memory to spare."""
    for version in _encrypted(versions):
        own, kernels = {}, {}
        name = _spoken(version)
        for _, side in _speakers(proxies, version):
            proxy = scene.start(side)
            load.fresh(name, _secure(proxy), 1, 1)
            before = machine.memory(proxy.pid), machine.kernel_memory()
            process = load.idle(name, _secure(proxy), connections, IDLE_SECONDS + connections // IDLE_HANDSHAKES)
            after = machine.memory(proxy.pid), machine.kernel_memory()
            # Who refuses connections, as some do in a burst, is not measured.
            if held(process, connections):
                own[side], kernels[side] = ([(now - then) / connections] for now, then in zip(after, before))
            scene.end(proxy)
        yield Row(version, f"each of {connections:,} idle connections", "KiB", own)
        yield Row(version, "the same in the kernel, both ends", "KiB", kernels)


def users(load, proxies, versions, rounds, seconds, disturbances):
    """Latencies of so many users who do not wait for each other, alone and beside what others do."""
    for version in _encrypted(versions, without="h3"):
        sides = _speakers(proxies, version)
        for beside in ("", *disturbances):
            figures = {share: {side: [] for _, side in sides} for share in ("p50", "p99", "p99.9")}
            for _ in range(rounds):
                for proxy, side in sides:
                    others = load.beside(beside, proxy, seconds + 1)
                    for share, value in load.users(_spoken(version), _secure(proxy), USERS, seconds + 1, RATE).items():
                        figures[share][side].append(value)
                    if others:
                        others.wait()
            for share in ["p99"] if beside else figures:
                what = f"{share} of {USERS:,} users, {RATE} requests/s each"
                yield Row(version, f"{what}, beside {beside}" if beside else what, "µs", figures[share])


def sites(load, scene, rounds, seconds):
    """What a file with many sites costs: each request, and `foregate check`."""
    sides = [(scene.start("foregate", sites=number), f"{number:,} more sites") for number in SITES]
    row = _row("h1", "1 KiB", sides, _ask(load, "h1", "1 KiB"), rounds, seconds)
    for proxy, _ in sides:
        scene.end(proxy)
    for (_, name), number in zip(sides, SITES):
        yield Row("h1", f"1 KiB with {name}", "µs", {"foregate": row.figures[name]})
        times = [scene.check(number) * 1000 for _ in range(rounds)]
        yield Row("h1", f"`foregate check` of {name}", "ms", {"foregate": times})


def _secure(proxy):
    return f"https://localhost:{proxy.https}/1k"


def _encrypted(versions, without=None):
    return [version for version in versions if version not in ("h1", without)]


def _spoken(version):
    """A version as proxies and generators name it, whether it is encrypted or not."""
    return version.split()[0]


def _speakers(proxies, version):
    return [(proxy, proxy.name) for proxy in proxies if _spoken(version) in proxy.versions]


def _ask(load, version, size):
    connections, streams = SHAPES[size]
    path = SIZES[size]

    def ask(proxy, seconds):
        if version == "h1":
            return load.h1(f"http://localhost:{proxy.http}/{path}", seconds, connections)
        url = f"https://localhost:{proxy.https}/{path}"
        if version == "h1 TLS":
            return load.h1(url, seconds, connections)
        if version == "h2":
            return load.h2(url, seconds, connections, streams)
        return load.h3(url, seconds, connections, streams)

    return ask


def _row(version, what, sides, ask, rounds, seconds):
    # After this connections to the VM are there, and caches are warm. Who does not do what is asked is left out.
    sides = [(proxy, name) for proxy, name in sides if ask(proxy, 1)]
    figures = {name: [] for _, name in sides}
    for _ in range(rounds):
        for proxy, name in sides:
            before = machine.cpu(proxy.pid)
            done = ask(proxy, seconds)
            figures[name].append((machine.cpu(proxy.pid) - before) / done * 1e6)
    return Row(version, what, "µs", figures)
