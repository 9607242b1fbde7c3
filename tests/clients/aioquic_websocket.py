"""A WebSocket over HTTP/3 (RFC 9220): aioquic carries it, wsproto speaks it."""

import argparse
import asyncio
import sys

from aioquic_client import H3_ALPN, Client, QuicConfiguration, connect
from report import need, say, sha256

with need("aioquic"):
    from aioquic.h3.events import DataReceived, HeadersReceived
with need("wsproto"):
    from wsproto.connection import Connection, ConnectionType
    from wsproto.events import BytesMessage, CloseConnection, TextMessage


class Socket:
    """One stream as a WebSocket."""

    def __init__(self, client, options):
        self.client = client
        self.speaks = Connection(ConnectionType.CLIENT)
        self.head = asyncio.get_running_loop().create_future()
        self.events = asyncio.Queue()
        self.stream = client._quic.get_next_available_stream_id()
        client.sockets[self.stream] = self
        head = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "https",
            ":authority": options.host,
            ":path": options.path,
            "sec-websocket-version": "13",
            "sec-websocket-protocol": "chat",
            "user-agent": "aioquic",
        }
        client.http.send_headers(self.stream, [(name.encode(), value.encode()) for name, value in head.items()])
        client.transmit()

    def send(self, event):
        self.client.http.send_data(self.stream, self.speaks.send(event), end_stream=False)
        self.client.transmit()

    def received(self, event):
        if isinstance(event, HeadersReceived):
            self.head.set_result({name.decode(): value.decode() for name, value in event.headers})
        elif isinstance(event, DataReceived):
            if event.data:
                self.speaks.receive_data(event.data)
            for told in self.speaks.events():
                self.events.put_nowait(told)
        if event.stream_ended:
            self.events.put_nowait(None)

    async def message(self):
        """A whole message: wsproto gives it out as it comes."""
        pieces = []
        while True:
            event = await self.events.get()
            if not isinstance(event, (BytesMessage, TextMessage)):
                raise ConnectionError(f"no message but {event}")
            pieces.append(event.data)
            if event.message_finished:
                return type(event.data)().join(pieces)


class Sockets(Client):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sockets = {}
        deliver = self.http.handle_event

        def handle_event(event):
            events = deliver(event)
            for told in events:
                socket = self.sockets.get(getattr(told, "stream_id", None))
                if socket is not None:
                    socket.received(told)
            return events

        self.http.handle_event = handle_event


async def converse(client, options):
    socket = Socket(client, options)
    head = await socket.head
    texts = []
    for number in range(20):
        socket.send(TextMessage(data=f"message {number}"))
        texts.append(await socket.message())
    large = bytes(range(256)) * (options.large // 256)
    socket.send(BytesMessage(data=large))
    echo = await socket.message()
    # Another request on the same connection does not disturb it.
    beside = (await client.request("GET", options.host, "/beside")).told()
    socket.send(CloseConnection(code=1000, reason="done"))
    closed = await socket.events.get()
    ended = await socket.events.get()
    return {
        "head": head,
        "texts": texts,
        "same": sha256(echo) == sha256(large),
        "beside": beside,
        "closed": closed.code if isinstance(closed, CloseConnection) else str(closed),
        "fin": ended is None,
    }


async def stay(client, options):
    """Keeps the socket until the server closes it."""
    socket = Socket(client, options)
    head = await socket.head
    socket.send(TextMessage(data="hello"))
    text = await socket.message()
    closed = await socket.events.get()
    socket.send(closed.response())
    ended = await socket.events.get()
    return {"head": head, "text": text, "closed": closed.code, "fin": ended is None}


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--stay", action="store_true")
    parser.add_argument("--large", type=int, default=1 << 20)
    options = parser.parse_args()
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=options.host)
    configuration.load_verify_locations(cafile=options.ca)
    async with connect(
        "127.0.0.1", options.port, configuration=configuration, create_protocol=Sockets
    ) as client:
        told = await (stay if options.stay else converse)(client, options)
    say(**told, ended=client.ended)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
