"""What asks: wrk for HTTP/1.1, h2load for HTTP/2, our own h3load for HTTP/3, and our own tlsload for what the others do
not do. Each returns how many requests were answered; one that failed ends the run."""

import re
import subprocess
import time


class Load:
    """The generators; `programs` is where our own were built."""

    def __init__(self, programs):
        self.h3load, self.tlsload = programs / "h3load", programs / "tlsload"

    def h1(self, url, seconds, connections):
        out = _run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", url])
        if "Non-2xx" in out or "Socket errors" in out:
            raise SystemExit(f"{url} failed:\n{out}")
        return int(re.search(r"(\d+) requests in", out)[1])

    def h2(self, url, seconds, connections, streams):
        out = _run(["h2load", f"-c{connections}", f"-m{streams}", "-t1", "-D", seconds, url])
        done, failed = re.search(r"(\d+) succeeded, (\d+) failed", out).groups()
        if failed != "0":
            raise SystemExit(f"{url} failed:\n{out}")
        return int(done)

    def h3(self, url, seconds, connections, streams):
        return _count(_run([self.h3load, url, connections, streams, seconds]), url)

    def fresh(self, version, url, seconds, connections, resumed=False):
        """A connection for each request, with a full handshake or a resumed one."""
        if version == "h3":
            return _count(_run([self.h3load, url, connections, 1, seconds, "fresh"]), url)
        out = _run([self.tlsload, "resumed" if resumed else "fresh", version, url, connections, seconds])
        done = _count(out, url)
        # The first connection of each has no session yet.
        if resumed and int(re.search(r"(\d+) resumed", out)[1]) < done - connections:
            return None
        return done

    def idle(self, version, url, connections, seconds):
        """Opens connections, sends one request on each and holds them; ready when all should be there."""
        if version == "h3":
            words = [self.h3load, url, connections, 1, seconds, "idle"]
        else:
            words = [self.tlsload, "idle", version, url, connections, seconds]
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(list(map(str, words)), text=True, **quiet)
        time.sleep(seconds - 2)
        return process

    def beside(self, what, proxy, seconds):
        """Begins what others do meanwhile; None where nobody does anything."""
        url = f"https://localhost:{proxy.https}"
        words = {
            "": None,
            "bulk": ["wrk", "-t1", "-c1", f"-d{seconds}s", f"{url}/10m"],
            "handshakes": [self.tlsload, "callers", "h1", f"{url}/1k", 50, seconds, 10],
            "a hanging VM": ["wrk", "-t1", "-c100", f"-d{seconds}s", f"{url}/hang"],
        }[what]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return words and subprocess.Popen(list(map(str, words)), **quiet)

    def users(self, version, url, users, seconds, rate):
        """Microseconds within which so many users are served who ask so often: p50, p99 and p99.9."""
        out = _run([self.tlsload, "users", version, url, users, seconds, rate])
        _count(out, url)
        return {share: int(value) for share, value in re.findall(r"(p[\d.]+) (\d+)", out)}


def held(process, connections):
    """Whether all the connections of an idle run were there."""
    return process.communicate()[0].startswith(f"{connections} requests, 0 failed")


def _count(out, url):
    done, failed = re.search(r"(\d+) requests, (\d+) failed", out).groups()
    if failed != "0":
        raise SystemExit(f"{url} failed:\n{out}")
    return int(done)


def _run(words):
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout
