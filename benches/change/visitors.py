"""Clients that others have written, of one kind, until standard input is closed:

    python3 -m change.visitors KIND PORT

`curl h1`, `curl h2` and `curl h3` are libcurl, which keeps its connections; `aioquic` has several HTTP/3 connections on one
UDP socket; `ws1`, `ws2` and `ws3` are open WebSockets that say something now and then; `downloads` are slow. At the end a line
of JSON tells what became of them.
"""

import asyncio
import hashlib
import json
import ssl
import sys
import time

HOST = "localhost"
WEBSOCKETS, DOWNLOADS, CONNECTIONS = 17, 5, 4
# Requests a second, by kind.
RATE = 30
# What a download takes.
SECONDS = 10


class Count:
    """Of requests, or of whatever a visitor does."""

    def __init__(self):
        self.done, self.failed, self.again, self.why = 0, 0, 0, {}

    def fails(self, error):
        self.failed += 1
        why = f"{type(error).__name__}: {error}"[:160]
        self.why[why] = self.why.get(why, 0) + 1


async def open_loop(over, ask, count):
    """Asks so many times a second, whether or not answers come."""
    tasks = set()
    while not over.is_set():
        task = asyncio.ensure_future(once(ask, count))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(1 / RATE)
    if tasks:
        await asyncio.wait(tasks, timeout=20)


async def once(ask, count):
    try:
        await ask()
        count.done += 1
    except Exception as error:
        count.fails(error)


async def libcurl(version, port, over, count):
    from curl_cffi import CurlHttpVersion
    from curl_cffi.requests import AsyncSession

    versions = {"h1": CurlHttpVersion.V1_1, "h2": CurlHttpVersion.V2TLS, "h3": CurlHttpVersion.V3ONLY}
    async with AsyncSession(verify=False, max_clients=64, http_version=versions[version], timeout=20) as session:

        async def ask():
            response = await session.get(f"https://{HOST}:{port}/1k")
            if response.status_code != 200 or len(response.content) != 1024:
                raise ValueError(f"status {response.status_code}, {len(response.content)} bytes")

        await open_loop(over, ask, count)


def quic_configuration():
    from aioquic.h3.connection import H3_ALPN
    from aioquic.quic.configuration import QuicConfiguration

    return QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE, server_name=HOST, idle_timeout=60)


class Shared(asyncio.DatagramProtocol):
    """One UDP socket of several connections: who a packet is for stands in it."""

    def __init__(self, port):
        self.to, self.connections, self.transport = ("127.0.0.1", port), {}, None

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        from aioquic.buffer import Buffer
        from aioquic.quic.packet import pull_quic_header

        header = pull_quic_header(Buffer(data=data), host_cid_length=8)
        owner = self.connections.get(header.destination_cid)
        if owner:
            owner.receive(data)


class Http3:
    """One connection over the shared socket; it connects anew when it is told to go."""

    def __init__(self, shared, count):
        self.shared, self.count, self.waiting = shared, count, {}
        self.connect()

    def connect(self):
        from aioquic.h3.connection import H3Connection
        from aioquic.quic.connection import QuicConnection

        self.quic, self.goes, self.timer = QuicConnection(configuration=quic_configuration()), False, None
        self.http = H3Connection(self.quic)
        self.shared.connections[self.quic.host_cid] = self
        self.quic.connect(self.shared.to, now=time.monotonic())
        self.flush()

    def receive(self, data):
        quic = self.quic
        quic.receive_datagram(data, self.shared.to, now=time.monotonic())
        self.flush()

    def flush(self):
        from aioquic.h3.events import DataReceived, HeadersReceived
        from aioquic.quic import events

        while (event := self.quic.next_event()) is not None:
            if isinstance(event, events.ConnectionIdIssued):
                self.shared.connections[event.connection_id] = self
            if isinstance(event, events.StreamReset):
                self.lose(event.stream_id, ConnectionError(f"reset {event.error_code:#x}"))
            if isinstance(event, events.ConnectionTerminated):
                for stream in list(self.waiting):
                    self.lose(stream, ConnectionError(f"terminated {event.error_code:#x} {event.reason_phrase}"))
                self.goes = True
            for http in self.http.handle_event(event):
                future = self.waiting.get(http.stream_id) if isinstance(http, (HeadersReceived, DataReceived)) else None
                if future and http.stream_ended and not future.done():
                    future.set_result(None)
                    self.waiting.pop(http.stream_id)
        for data, _ in self.quic.datagrams_to_send(now=time.monotonic()):
            self.shared.transport.sendto(data, self.shared.to)
        if self.timer:
            self.timer.cancel()
            self.timer = None
        due = self.quic.get_timer()
        if due is not None:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(max(0, due - time.monotonic()), self.fire)

    def fire(self):
        self.timer = None
        self.quic.handle_timer(now=time.monotonic())
        self.flush()

    def lose(self, stream, error):
        future = self.waiting.pop(stream, None)
        if future and not future.done():
            future.set_exception(error)

    async def ask(self):
        # aioquic does not tell of GOAWAY: a connection that was told to go refuses what comes too late with
        # H3_REQUEST_REJECTED (0x10b), which says that nothing was done with it (RFC 9114, section 5.2).
        for attempt in range(3):
            if self.goes:
                self.connect()
            try:
                return await self.once()
            except ConnectionError as error:
                self.goes, self.count.again = True, self.count.again + 1
                if attempt == 2 or not any(word in str(error) for word in ("0x10b", "0x100", "terminated 0x0")):
                    raise

    async def once(self):
        stream = self.quic.get_next_available_stream_id()
        future = asyncio.get_running_loop().create_future()
        self.waiting[stream] = future
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", HOST.encode()), (b":path", b"/1k")]
        self.http.send_headers(stream, fields, end_stream=True)
        self.flush()
        await asyncio.wait_for(future, 20)


async def aioquic(port, over, count):
    loop = asyncio.get_running_loop()
    _, shared = await loop.create_datagram_endpoint(lambda: Shared(port), local_addr=("127.0.0.1", 0))
    connections = [Http3(shared, count) for _ in range(CONNECTIONS)]
    turn = iter(range(10**9))
    await open_loop(over, lambda: connections[next(turn) % CONNECTIONS].ask(), count)


async def websockets(port, over, count):
    """Over HTTP/1.1. One that is closed is opened anew, and counted."""
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(["http/1.1"])

    async def visit():
        while not over.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=HOST)
                writer.write(
                    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                )
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                if b" 101 " not in head:
                    raise ConnectionError(head[:40])
            except Exception as error:
                count.fails(error)
                await asyncio.sleep(0.2)
                continue
            while not over.is_set():
                # A text frame, masked with zeros.
                writer.write(b"\x81\x85\0\0\0\0hello")
                try:
                    head = await asyncio.wait_for(reader.readexactly(2), 10)
                    body = await reader.readexactly(head[1] & 0x7F)
                    if head[0] & 0xF == 8 or not body:
                        raise ConnectionError("closed")
                    count.done += 1
                    await asyncio.sleep(0.5)
                except Exception:
                    count.again += 1
                    break
            writer.close()

    await asyncio.gather(*(visit() for _ in range(WEBSOCKETS)))


async def websockets2(port, over, count):
    """Over HTTP/2 (RFC 8441), each with a connection of its own."""
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset
    from h2.settings import SettingCodes

    context = ssl._create_unverified_context()
    context.set_alpn_protocols(["h2"])

    class Socket:
        def __init__(self, reader, writer):
            self.reader, self.writer = reader, writer
            self.http = H2Connection(H2Configuration(client_side=True, header_encoding=None))
            self.http.initiate_connection()
            self.said, self.rest = [], b""

        async def flush(self):
            self.writer.write(self.http.data_to_send())
            await self.writer.drain()

        async def receive(self):
            """What comes, frame by frame, without GOAWAY: h2 takes that for the end of what has begun too."""
            data = await asyncio.wait_for(self.reader.read(65536), 10)
            if not data:
                return None
            self.rest += data
            events = []
            while len(self.rest) >= 9 and len(self.rest) >= (length := 9 + int.from_bytes(self.rest[:3], "big")):
                frame, self.rest = self.rest[:length], self.rest[length:]
                if frame[3] != 7:
                    events += self.http.receive_data(frame)
            await self.flush()
            return events

        async def hear(self):
            """The status, data, or None at the end."""
            while not self.said:
                events = await self.receive()
                if events is None:
                    return None
                for event in events:
                    if isinstance(event, ResponseReceived):
                        self.said.append(dict(event.headers)[b":status"])
                    elif isinstance(event, DataReceived):
                        self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        self.said.append(event.data or None)
                    elif isinstance(event, (StreamEnded, StreamReset)):
                        self.said.append(None)
                await self.flush()
            return self.said.pop(0)

        async def open(self):
            await self.flush()
            while not self.http.remote_settings.get(SettingCodes.ENABLE_CONNECT_PROTOCOL):
                if await self.receive() is None:
                    raise ConnectionError("no settings")
            self.stream = self.http.get_next_available_stream_id()
            fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":authority", HOST), (":path", "/ws"), ("sec-websocket-version", "13")]
            self.http.send_headers(self.stream, fields)
            await self.flush()
            if await self.hear() != b"200":
                raise ConnectionError("no 200")

        async def say(self, data):
            self.http.send_data(self.stream, data)
            await self.flush()

    async def visit():
        while not over.is_set():
            try:
                socket = Socket(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=HOST))
                await socket.open()
                while not over.is_set():
                    await socket.say(b"\x81\x85\0\0\0\0hello")
                    heard = await socket.hear()
                    if heard is None or heard[0] & 0xF == 8:
                        count.again += 1
                        break
                    count.done += 1
                    await asyncio.sleep(0.5)
                socket.writer.close()
            except Exception as error:
                count.fails(error)
                await asyncio.sleep(0.2)

    await asyncio.gather(*(visit() for _ in range(WEBSOCKETS)))


async def websockets3(port, over, count):
    """Over HTTP/3 (RFC 9220), each with a connection of its own."""
    from aioquic.asyncio import QuicConnectionProtocol, connect
    from aioquic.h3.connection import H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.events import ConnectionTerminated, StreamReset

    class Socket(QuicConnectionProtocol):
        def __init__(self, *words, **more):
            super().__init__(*words, **more)
            self.http, self.heard = H3Connection(self._quic), asyncio.Queue()

        def quic_event_received(self, event):
            if isinstance(event, (ConnectionTerminated, StreamReset)):
                self.heard.put_nowait(None)
            for http in self.http.handle_event(event):
                if isinstance(http, HeadersReceived):
                    self.heard.put_nowait(dict(http.headers).get(b":status"))
                elif isinstance(http, DataReceived):
                    self.heard.put_nowait(http.data or None)

        def say(self, data=None):
            if data is None:
                self.stream = self._quic.get_next_available_stream_id()
                fields = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":authority", HOST.encode()), (b":path", b"/ws"), (b"sec-websocket-version", b"13")]
                self.http.send_headers(self.stream, fields)
            else:
                self.http.send_data(self.stream, data, end_stream=False)
            self.transmit()

    async def visit():
        while not over.is_set():
            try:
                async with connect("127.0.0.1", port, configuration=quic_configuration(), create_protocol=Socket) as socket:
                    # The server's settings say that it takes this.
                    await asyncio.sleep(0.2)
                    socket.say()
                    if await asyncio.wait_for(socket.heard.get(), 10) != b"200":
                        raise ConnectionError("no 200")
                    while not over.is_set():
                        socket.say(b"\x81\x85\0\0\0\0hello")
                        heard = await asyncio.wait_for(socket.heard.get(), 10)
                        if heard is None or heard[0] & 0xF == 8:
                            count.again += 1
                            break
                        count.done += 1
                        await asyncio.sleep(0.5)
            except Exception as error:
                count.fails(error)
                await asyncio.sleep(0.2)

    await asyncio.gather(*(visit() for _ in range(WEBSOCKETS)))


async def downloads(port, over, count):
    """curl, at so many bytes a second that 10 MiB take longer than a drain; the last ones may still run at the end."""
    whole = hashlib.sha256(b"x" * (10 << 20)).hexdigest()

    async def visit():
        while not over.is_set():
            begun = time.monotonic()
            words = ["curl", "-sSk", "--fail", "--limit-rate", str((10 << 20) // SECONDS), f"https://{HOST}:{port}/10m"]
            curl = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
            out, err = await curl.communicate()
            if curl.returncode == 0 and hashlib.sha256(out).hexdigest() == whole:
                count.done += 1
            else:
                count.fails(ConnectionError(f"{time.strftime('%X')}: after {time.monotonic() - begun:.1f} s, {len(out)} bytes: {err.decode().strip()}"))

    await asyncio.gather(*(visit() for _ in range(DOWNLOADS)))


async def main(kind, port):
    over, count = asyncio.Event(), Count()
    visits = {"aioquic": aioquic, "ws1": websockets, "ws2": websockets2, "ws3": websockets3, "downloads": downloads}
    if kind in visits:
        visit = visits[kind](int(port), over, count)
    else:
        visit = libcurl(kind.removeprefix("curl "), int(port), over, count)
    visiting = asyncio.ensure_future(visit)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    over.set()
    await visiting
    print(json.dumps(count.__dict__), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
