"""What one tenant in trouble costs another, and what is left when three times as much comes as the VMs can do."""

import contextlib
import pathlib
import signal
import socket
import ssl
import subprocess
import tempfile
import time

from compare import machine

from .scene import SERVER, Vm, memory, result

# A VM of `b` serves 100 requests a second, one after the other.
CAPACITY = 100
# Of tenant a: users, and requests of each a second.
USERS, RATE = 100, 5
SECONDS = 12
# Before something is measured: for handshakes, and until queues are as long as they get.
WARM = 6
# So many requests are waited for at a time, however slow the answers are.
PATIENT = 2
WEBSOCKETS = 20
CONFIG = """
[sites.all]
hosts = "*"
routes = [{{ paths = "/a/", pool = "a" }}, {{ paths = "/b/", pool = "b" }}]

[pools.a]
backends = ["{a}"]
health = {{ http = {{ path = "/healthz" }} }}

[pools.b]
backends = [{b}]
health = {{ http = {{ path = "/healthz" }}, interval = "500ms", rise = 1, fall = 1 }}
"""


@contextlib.contextmanager
def scene(programs, illness, limit):
    """The gateway, a VM of tenant a and two of tenant b."""
    with tempfile.TemporaryDirectory(prefix="foregate-drill-") as name:
        folder = pathlib.Path(name)
        machine.make_certificate(folder, "DNS:localhost")
        a, b = Vm(folder, 0, "silent"), [Vm(folder, number, illness) for number in (1, 2)]
        https, limit = machine.free_port(), f", max_requests = {limit}" if limit else ""
        backends = ", ".join(f'{{ address = "{vm.address}"{limit} }}' for vm in b)
        (folder / "foregate.toml").write_text(SERVER.format(https=https, folder=folder) + CONFIG.format(a=a.address, b=backends))
        with (folder / "gateway.log").open("w") as log:
            words = [programs / "foregate", "run", "--config", folder / "foregate.toml"]
            gateway = subprocess.Popen(words, stdout=log, stderr=log)
            try:
                machine.wait_for(https, "the gateway")
                yield gateway, https, b
            finally:
                gateway.kill()
                gateway.wait()
                for vm in [a, *b]:
                    vm.end()


def users(programs, https, path, count, rate, seconds=SECONDS):
    words = [programs / "tlsload", "users", "h2", f"https://localhost:{https}{path}", count, seconds, rate]
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def flood_of(programs, https, times, seconds):
    """So many times what the VMs of b can do, by users of whom each asks so seldom that few wait for themselves."""
    return users(programs, https, "/b/", int(2 * CAPACITY * times * PATIENT), 1 / PATIENT, seconds)


class WebSockets:
    """Open ones, of which some may have been closed."""

    def __init__(self, https):
        context = ssl._create_unverified_context()
        context.set_alpn_protocols(["http/1.1"])
        request = b"GET /a/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        self.open = []
        for _ in range(WEBSOCKETS):
            one = context.wrap_socket(socket.create_connection(("127.0.0.1", https)), server_hostname="localhost")
            one.sendall(request)
            assert b" 101 " in one.recv(4096)
            one.setblocking(False)
            self.open.append(one)

    def closed(self):
        def is_closed(one):
            try:
                # The end, or a close frame: nothing else is said to them.
                one.recv(1)
                return True
            except ssl.SSLWantReadError:
                return False

        return sum(map(is_closed, self.open))


def flapping(b):
    """Its VMs die and come back, by turns, every second."""
    until = time.monotonic() + SECONDS - 1
    while time.monotonic() < until:
        for vm in b:
            vm.process.send_signal(signal.SIGKILL)
            vm.process.wait()
            time.sleep(0.5)
            vm.start()


def isolation(programs):
    print("| Tenant b | Requests of a that failed | p50 of a | p99 of a | to calm | WebSockets of a closed |")
    print("|---|---|---|---|---|---|")
    calm = None
    # Calm twice: the second is what chance alone does.
    for title, times, limit, flaps in [
        ("is calm", 0.5, 20, False),
        ("is calm (again)", 0.5, 20, False),
        ("gets 10 times what its VMs can do, with `max_requests`", 10, 20, False),
        ("gets 10 times what its VMs can do, without", 10, None, False),
        ("has VMs that die every second", 0.5, 20, True),
    ]:
        with scene(programs, "capacity", limit) as (_, https, b):
            sockets = WebSockets(https)
            flood = flood_of(programs, https, times, WARM + SECONDS)
            time.sleep(WARM)
            quiet = users(programs, https, "/a/", USERS, RATE)
            if flaps:
                flapping(b)
            _, failed, p50, p99 = result(quiet)
            flood.kill()
            flood.wait()
            calm = calm or p99
            cells = [title, failed, f"{p50:.1f} ms", f"{p99:.1f} ms", f"{p99 / calm:.2f}", f"{sockets.closed()} of {WEBSOCKETS}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def overload(programs):
    print("| Offered, of what the VMs can do | Served a second | of the best | p99 of those | Memory | Calm again after |")
    print("|---|---|---|---|---|---|")
    best = None
    for times in (0.5, 1, 3):
        with scene(programs, "capacity", 20) as (gateway, https, b):
            load = flood_of(programs, https, times, WARM + SECONDS)
            time.sleep(WARM)
            begun, most = time.time(), 0
            while time.time() < begun + SECONDS - 1:
                most = max(most, memory(gateway))
                time.sleep(0.1)
            ended = time.time()
            served = sum(count for vm in b for at, count in vm.served() if begun <= at < ended) / (ended - begun)
            # From then on nothing new comes; what has come may still be answered.
            time.sleep(max(begun + SECONDS - time.time(), 0))
            load.send_signal(signal.SIGINT)
            over = time.monotonic()
            while True:
                done, failed, _, slowest = result(users(programs, https, "/b/", 1, 10, 2))
                if not failed and slowest < 50:
                    break
            # The first second of it belongs to the handshake.
            calm = max(time.monotonic() - over - 2, 0)
            _, _, _, p99 = result(load)
            best = max(best or 0, served)
            cells = [f"{times} x", f"{served:.0f}", f"{served / best:.2f}", f"{p99:.0f} ms", f"{most:.0f} MiB", f"{calm:.1f} s"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main(programs):
    isolation(programs)
    print()
    overload(programs)
