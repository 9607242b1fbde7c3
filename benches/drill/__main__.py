"""Two VMs behind the gateway, 2,000 requests/s, and one of them fails: what that costs visitors."""

import argparse
import contextlib
import dataclasses
import datetime
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from compare import machine

from . import crowd, tenants
from .scene import SERVER, Namespace, Vm

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
USERS, RATE = 400, 5
NAMES = {"h1": "HTTP/1.1", "h2": "HTTP/2", "h3": "HTTP/3"}
# Seconds into a run: the VM falls ill, and is well again. Its first second belongs to the handshakes.
FALLS, STAYS_ILL, AFTER = 3, 10, 9
CONFIG = """
[sites.all]
hosts = "*"
pool = "vms"

[pools.vms]
backends = ["{first}", "{second}"]
health = {{ http = {{ path = "/healthz" }} }}
retry = {{ on = ["connect", "reset", "timeout", "503"] }}
"""


@dataclasses.dataclass
class Case:
    """`fall` and `heal` are signals, or None where the process is killed and started anew."""

    title: str
    illness: str = "silent"
    fall: int | None = signal.SIGUSR1
    heal: int | None = signal.SIGUSR2
    both: bool = False
    # It lives in a network namespace, and what it says no longer leaves that.
    cut: bool = False


CASES = {
    "kill": Case("is killed (SIGKILL) and started anew", fall=signal.SIGKILL, heal=None),
    "hang": Case("hangs (SIGSTOP)", fall=signal.SIGSTOP, heal=signal.SIGCONT),
    "refuse": Case("refuses connections", "refuses"),
    "head": Case("resets within each head", "reset_mid_head"),
    "body": Case("resets within each body", "reset_mid_body"),
    "5xx": Case("answers 503", "fails"),
    "slow": Case("takes 6 s for each answer", "slow_head"),
    "garbage": Case("answers garbage", "garbage"),
    "silent": Case("accepts, and never answers", "silent"),
    "cut": Case("is cut off: its packets are dropped", cut=True),
    "drip": Case("takes 3 s for each body", "slow_body"),
    "all": Case("both VMs are killed and started anew", fall=signal.SIGKILL, heal=None, both=True),
}


def run(case, version, programs):
    with tempfile.TemporaryDirectory(prefix="foregate-drill-") as name, contextlib.ExitStack() as closing:
        folder = pathlib.Path(name)
        machine.make_certificate(folder, "DNS:localhost")
        namespace = closing.enter_context(Namespace()) if case.cut else None
        vms = [Vm(folder, 0, case.illness, namespace), Vm(folder, 1, case.illness)]
        https = machine.free_port()
        config = folder / "foregate.toml"
        config.write_text(SERVER.format(https=https, folder=folder) + CONFIG.format(first=vms[0].address, second=vms[1].address))
        log = (folder / "gateway.log").open("w")
        gateway = subprocess.Popen([programs / "foregate", "run", "--config", config], stdout=log, stderr=log)
        try:
            machine.wait_for(https, "the gateway")
            return _measure(case, version, programs, vms, https, folder, namespace)
        finally:
            gateway.kill()
            gateway.wait()
            for vm in vms:
                vm.end()


def _measure(case, version, programs, vms, https, folder, namespace):
    ill = vms if case.both else vms[:1]
    url, seconds = f"https://localhost:{https}/", FALLS + STAYS_ILL + AFTER
    words = [programs / "tlsload", "users", version, url, USERS, seconds, RATE]
    if version == "h3":
        words = [programs / "h3load", url, USERS, 1, seconds, "users", RATE]
    load = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(FALLS)
    fell = time.time()
    if namespace:
        namespace.cut()
    else:
        for vm in ill:
            vm.process.send_signal(case.fall)
    time.sleep(STAYS_ILL)
    healed = time.time()
    if namespace:
        namespace.mend()
        ill = []
    for vm in ill:
        if case.heal:
            vm.process.send_signal(case.heal)
        else:
            vm.process.wait()
            vm.start()
    out, errors = load.communicate()
    done, failed = map(int, re.search(r"(\d+) requests, (\d+) failed", out).groups())
    p99 = int(re.search(r"p99 (\d+)", out)[1]) / 1000
    met = [at - fell for at in _failures(folder / "gateway.log") if fell <= at < healed]
    return {
        "failed": failed, "of": done + failed, "met": len(met), "last": max(met, default=None),
        "share": _share(vms, healed), "p99": p99, "said": sorted(set(errors.splitlines()))[:3],
    }


def _failures(log):
    """When an attempt failed."""
    for line in log.read_text().splitlines():
        found = re.match(r"(\S+Z)\s+WARN backend failed", line)
        if found:
            yield datetime.datetime.fromisoformat(found[1].replace("Z", "+00:00")).timestamp()


def _share(vms, healed):
    """Seconds until the VM serves nine tenths of what is its, over half a second."""
    first, second = (vm.served() for vm in vms)
    at = healed
    while at < healed + AFTER - 1:
        ours, others = (sum(count for when, count in each if at <= when < at + 0.5) for each in (first, second))
        if ours and ours >= 0.9 * (ours + others) / 2:
            return at - healed
        at += 0.05
    return None


def main():
    parser = argparse.ArgumentParser(prog="scripts/drill", description=__doc__)
    parser.add_argument("--versions", nargs="*", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--crowd", action="store_true", help="three times as many strangers as the gateway itself can let in; needs root, for a control group")
    parser.add_argument("--tenants", action="store_true", help="what one tenant in trouble costs another, and overload")
    parser.add_argument("--no-build", action="store_true", help="with what target/release holds")
    options = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    if not options.no_build:
        words = ["cargo", "build", "--release", "--locked", "-p", "foregate", "-p", "foregate-bench"]
        subprocess.run(words, check=True, cwd=ROOT)
    if options.crowd:
        return crowd.main(target / "release")
    if options.tenants:
        return tenants.main(target / "release")
    print("| The VM | Version | Requests that failed | Attempts that met it | The last one after | Its full share again after | p99 |")
    print("|---|---|---|---|---|---|---|")
    for name in options.cases:
        for version in options.versions:
            row = run(CASES[name], version, target / "release")
            last = "-" if row["last"] is None else f"{row['last']:.2f} s"
            share = "later" if row["share"] is None else f"{row['share']:.2f} s"
            cells = [CASES[name].title, NAMES[version]]
            cells += [f"{row['failed']} of {row['of']:,}", row["met"], last, share, f"{row['p99']:.1f} ms"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            for line in row["said"]:
                print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
