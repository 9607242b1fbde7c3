"""aioquic as an HTTP/3 client: a GET, a POST, many requests at once, and a request that outlives a GOAWAY."""

import argparse
import asyncio
import pathlib
import sys

from report import need, say, sha256

with need("aioquic"):
    from aioquic.asyncio.client import connect
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.buffer import Buffer, BufferReadError
    from aioquic.h3.connection import H3_ALPN, H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import ConnectionTerminated, StopSendingReceived, StreamDataReceived, StreamReset

CONTROL_STREAM = 0x00
GOAWAY = 0x07
LARGEST_REQUEST = 2**62 - 4


class Answer:
    def __init__(self):
        self.heads = []
        self.body = bytearray()
        self.reset = None
        self.begun = asyncio.Event()
        self.done = asyncio.get_running_loop().create_future()

    def finish(self):
        self.begun.set()
        if not self.done.done():
            self.done.set_result(self)

    def fail(self, why):
        self.begun.set()
        if not self.done.done():
            self.done.set_exception(ConnectionError(why))

    def told(self):
        head = self.heads[0] if self.heads else {}
        return {
            "status": int(head.get(":status", 0)),
            "fields": {name: value for name, value in head.items() if name != ":status"},
            "trailers": self.heads[1] if len(self.heads) > 1 else {},
            "length": len(self.body),
            "sha256": sha256(self.body),
            "text": self.body.decode(errors="replace") if len(self.body) < 1000 else "",
            "reset": self.reset,
        }


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.answers = {}
        self.reset_streams = {}
        self.uni = {}
        self.goaways = []
        self.goaway = asyncio.Event()
        self.ended = None

    async def request(self, method, host, path, body=None):
        return await self.start(method, host, path, body).done

    def start(self, method, host, path, body=None):
        stream = self._quic.get_next_available_stream_id()
        answer = self.answers[stream] = Answer()
        answer.stream = stream
        head = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path)]
        head += [("user-agent", "aioquic")]
        if body is not None:
            head += [("content-length", str(len(body)))]
        head = [(name.encode(), value.encode()) for name, value in head]
        self.http.send_headers(stream, head, end_stream=body is None)
        if body is not None:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        return answer

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived) and event.stream_id % 4 == 3:
            self.look_for_goaway(event)
        if isinstance(event, StreamReset) and event.stream_id in self.answers:
            answer = self.answers[event.stream_id]
            answer.reset = event.error_code
            answer.finish()
        if isinstance(event, StopSendingReceived):
            self.reset_streams[event.stream_id] = event.error_code
        if isinstance(event, ConnectionTerminated):
            self.ended = {"code": event.error_code, "reason": event.reason_phrase, "frame": event.frame_type}
            for answer in self.answers.values():
                answer.fail(f"the connection ended: {self.ended}")
        for told in self.http.handle_event(event):
            answer = self.answers.get(getattr(told, "stream_id", None))
            if answer is None:
                continue
            if isinstance(told, HeadersReceived):
                head = {name.decode(): value.decode() for name, value in told.headers}
                if not head.get(":status", "").startswith("1"):
                    answer.heads.append(head)
            elif isinstance(told, DataReceived):
                answer.body += told.data
                answer.begun.set()
            if getattr(told, "stream_ended", False):
                answer.finish()

    def look_for_goaway(self, event):
        """aioquic reads GOAWAY away without a word, so the control stream is read here a second time."""
        self.uni[event.stream_id] = self.uni.get(event.stream_id, b"") + event.data
        buffer = Buffer(data=self.uni[event.stream_id])
        seen = []
        try:
            if buffer.pull_uint_var() != CONTROL_STREAM:
                return
            while not buffer.eof():
                kind = buffer.pull_uint_var()
                payload = buffer.pull_bytes(buffer.pull_uint_var())
                if kind == GOAWAY:
                    seen.append(Buffer(data=payload).pull_uint_var())
        except BufferReadError:
            pass
        self.goaways = seen
        # The first one names the largest id there is; what is served only the last one says.
        if seen and seen[-1] != LARGEST_REQUEST:
            self.goaway.set()


async def get(client, options):
    return (await client.request("GET", options.host, options.path)).told()


async def post(client, options):
    body = pathlib.Path(options.file).read_bytes()
    return (await client.request("POST", options.host, options.path, body)).told()


async def parallel(client, options):
    """All of them are asked before any is answered, on one connection."""
    answers = [client.start("GET", options.host, f"{options.path}{n}") for n in range(options.count)]
    await asyncio.gather(*(answer.done for answer in answers))
    return {"answers": [answer.told() for answer in answers]}


async def drain(client, options):
    """Asks, is told to go away, asks again in vain, and is answered what was asked first."""
    first = client.start("GET", options.host, options.path)
    await client.goaway.wait()
    before = not first.done.done() and not first.heads
    late = client.start("GET", options.host, "/late")
    await late.done
    # Whoever started this now lets the first request be answered.
    say(goaway=client.goaways)
    await first.done
    return {
        "waited": before,
        "first": first.told(),
        "stream": first.stream,
        "late": late.told(),
        "late_stream": late.stream,
        "goaways": client.goaways,
    }


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["get", "post", "parallel", "drain"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--file")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--cert", help="a certificate to show, with --key")
    parser.add_argument("--key")
    options = parser.parse_args()
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=options.host)
    configuration.load_verify_locations(cafile=options.ca)
    if options.cert:
        configuration.load_cert_chain(options.cert, options.key)
    async with connect(
        "127.0.0.1", options.port, configuration=configuration, create_protocol=Client
    ) as client:
        what = {"get": get, "post": post, "parallel": parallel, "drain": drain}[options.what]
        told = await what(client, options)
    say(**told, ended=client.ended)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
