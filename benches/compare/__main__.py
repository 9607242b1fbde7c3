"""The gateway beside its rivals, end to end, in one run on loopback: CPU time, memory and latency."""

import argparse
import datetime
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

from . import cases, machine, proxies, report
from .load import Load

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RIVALS = ["nginx", "haproxy", "envoy", "caddy", "traefik"]


def main():
    options = _options()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    venv = target / "bench-venv"
    proxies.install(options.rivals, venv)
    release = target / "release"
    if not options.no_build:
        words = ["cargo", "build", "--release", "--locked", "-p", "foregate", "-p", "foregate-bench"]
        subprocess.run(words, check=True, cwd=ROOT)
    load = Load(release)
    with tempfile.TemporaryDirectory(prefix="foregate-bench-") as folder:
        scene = proxies.Scene(pathlib.Path(folder), release, venv)
        try:
            _measure(options, scene, load)
        finally:
            scene.stop()


def _measure(options, scene, load):
    ours, twin = scene.start("foregate"), scene.start("foregate")
    sides = [ours, *(scene.start(name) for name in options.rivals)]
    rounds, seconds = options.rounds, options.seconds
    noise = cases.noise(load, ours, twin, rounds, seconds)
    print(report.line(noise), flush=True)
    rows = []
    for row in _rows(options, scene, load, sides, rounds, seconds):
        rows.append(row)
        print(report.line(row), flush=True)
    facts = {
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "machine": machine.describe(),
        "command": shlex.join(["scripts/bench", *sys.argv[1:]]),
        "commit": _commit(),
    }
    if options.write:
        folder = ROOT / "benches" / "results"
        folder.mkdir(exist_ok=True)
        (folder / f"{facts['date']}.md").write_text(report.markdown(rows, noise, sides, facts))
        (folder / "latest.svg").write_text(report.chart(rows, sides))


def _rows(options, scene, load, sides, rounds, seconds):
    sizes = ["1 KiB"] if options.quick else list(cases.SIZES)
    versions = options.versions
    yield from cases.matrix(load, sides, versions, rounds, seconds, sizes)
    yield from cases.fresh(load, sides, versions, rounds, seconds)
    yield from cases.users(load, sides, versions, rounds, seconds, [] if options.quick else cases.BESIDE)
    if not options.quick:
        yield from cases.sites(load, scene, rounds, seconds)
        if options.idle:
            yield from cases.idle(load, scene, sides, versions, options.idle)


def _options():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each round")
    parser.add_argument("--quick", action="store_true", help="1 KiB only, beside nginx and HAProxy, rounds of 1 s")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=RIVALS)
    parser.add_argument("--versions", nargs="*", choices=list(cases.VERSIONS), default=list(cases.VERSIONS))
    parser.add_argument("--idle", type=int, default=8500, help="how many connections lie idle; a proxy may need two open files for each")
    parser.add_argument("--no-build", action="store_true", help="measure what target/release holds")
    parser.add_argument("--write", action="store_true", help="keep the results in benches/results")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.rivals = 3, 1, ["nginx", "haproxy"]
    return options


def _commit():
    words = ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "no commit"


if __name__ == "__main__":
    main()
