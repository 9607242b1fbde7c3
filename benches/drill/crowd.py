"""Three times as many visitors as the gateway itself can let in: strangers, with a handshake each, who leave when they are kept waiting."""

import contextlib
import os
import pathlib
import subprocess
import tempfile
import time

from compare import machine

from .scene import SERVER, Vm, memory, result

# The processors are shared with the visitors, so the gateway gets a part of one: then there is enough left for three times
# as many visitors as it can let in. `cpu.cfs_period_us` of 10 ms keeps its pauses short.
PERIOD, SHARE = 10_000, 0.2
SECONDS, PATIENCE = 12, 2
CGROUP = pathlib.Path("/sys/fs/cgroup/cpu/foregate-drill")
NAMES = {"h1": "HTTP/1.1", "h2": "HTTP/2", "h3": "HTTP/3"}
CONFIG = """
[sites.all]
hosts = "*"
pool = "{vm}"
"""


@contextlib.contextmanager
def small_machine():
    """A control group that has a part of one processor."""
    CGROUP.mkdir(exist_ok=True)
    try:
        (CGROUP / "cpu.cfs_period_us").write_text(str(PERIOD))
        (CGROUP / "cpu.cfs_quota_us").write_text(str(int(PERIOD * SHARE)))
        yield
    finally:
        time.sleep(0.1)
        CGROUP.rmdir()


@contextlib.contextmanager
def scene(programs):
    with small_machine(), tempfile.TemporaryDirectory(prefix="foregate-drill-") as name:
        folder = pathlib.Path(name)
        machine.make_certificate(folder, "DNS:localhost")
        vm, https = Vm(folder, 0, "silent"), machine.free_port()
        (folder / "foregate.toml").write_text(SERVER.format(https=https, folder=folder) + CONFIG.format(vm=vm.address))
        with (folder / "gateway.log").open("w") as log:
            words = [programs / "foregate", "run", "--config", folder / "foregate.toml"]
            enter = lambda: (CGROUP / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731
            gateway = subprocess.Popen(words, stdout=log, stderr=log, preexec_fn=enter)
            try:
                machine.wait_for(https, "the gateway")
                yield gateway, https
            finally:
                gateway.kill()
                gateway.wait()
                vm.end()


def load_of(programs, version, mode, https, count, seconds):
    url, patience = f"https://localhost:{https}/", [PATIENCE] if mode == "strangers" else []
    if version == "h3":
        words = [programs / "h3load", url, count, 1, seconds, mode, *patience]
    else:
        words = [programs / "tlsload", mode, version, url, count, seconds, *patience]
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def calm_after(programs, version, https):
    """Seconds until a stranger is let in as if nothing had been."""
    over = time.monotonic()
    while True:
        begun = time.monotonic()
        _, failed, _, p99 = result(load_of(programs, version, "strangers", https, 20, 1))
        if not failed and p99 < 200:
            return max(begun - over, 0)


def main(programs):
    print(f"The gateway has {SHARE:.0%} of a processor.\n")
    print("| Strangers, of what it can let in | Served a second | of the best | p50, p99 of those | Memory | Calm again after |")
    print("|---|---|---|---|---|---|")
    for version in NAMES:
        with scene(programs) as (_, https):
            done, *_ = result(load_of(programs, version, "fresh", https, 16, 6))
            best = done / 6
        for times in (0.5, 0.9, 3):
            with scene(programs) as (gateway, https):
                load = load_of(programs, version, "strangers", https, int(best * times), SECONDS)
                most = 0
                while load.poll() is None and time.sleep(0.2) is None:
                    most = max(most, memory(gateway))
                calm = calm_after(programs, version, https)
                done, _, p50, p99 = result(load)
                served = done / SECONDS
                cells = [f"{NAMES[version]}, {times} x", f"{served:.0f}", f"{served / best:.2f}", f"{p50:.0f}, {p99:.0f} ms", f"{most:.0f} MiB", f"{calm:.1f} s"]
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)
