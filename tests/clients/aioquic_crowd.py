"""aioquic with several connections on one UDP socket, all of which move to another port between two requests."""

import argparse
import asyncio
import sys

from aioquic_client import H3_ALPN, Client, QuicConfiguration
from report import need, say

with need("aioquic"):
    from aioquic.quic.connection import QuicConnection


class Socket(asyncio.DatagramProtocol):
    """One socket for all of them: a packet is theirs whose connection id it carries."""

    def __init__(self, clients):
        self.clients = clients

    def datagram_received(self, data, address):
        id = data[6 : 6 + data[5]] if data[0] & 0x80 else data[1 : 1 + Crowd.ID]
        for client in self.clients:
            if any(own.cid == id for own in client._quic._host_cids):
                client.datagram_received(data, address)


class Crowd:
    ID = 13

    def __init__(self, options):
        self.options = options
        self.clients = []

    async def bind(self):
        loop = asyncio.get_running_loop()
        # Not closed before the others are used: the last answers may still come to the old port.
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Socket(self.clients), local_addr=("127.0.0.1", 0)
        )
        for client in self.clients:
            client._transport = transport
        return transport

    async def connect(self):
        transport = await self.bind()
        for _ in range(self.options.count):
            configuration = QuicConfiguration(
                is_client=True,
                alpn_protocols=H3_ALPN,
                server_name=self.options.host,
                # Its own ids, and the first one by which it calls the gateway.
                connection_id_length=Crowd.ID,
            )
            configuration.load_verify_locations(cafile=self.options.ca)
            client = Client(QuicConnection(configuration=configuration))
            client.connection_made(transport)
            self.clients.append(client)
        for client in self.clients:
            client.connect(("127.0.0.1", self.options.port))
        await asyncio.gather(*(client.wait_connected() for client in self.clients))

    async def ask(self):
        path = self.options.path
        answers = (client.request("GET", self.options.host, path) for client in self.clients)
        return [answer.told() for answer in await asyncio.gather(*answers)]

    async def close(self):
        for client in self.clients:
            client.close()
        await asyncio.gather(*(client.wait_closed() for client in self.clients))


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--count", type=int, default=4)
    crowd = Crowd(parser.parse_args())
    await crowd.connect()
    before = await crowd.ask()
    await crowd.bind()
    after = await crowd.ask()
    ended = [client.ended for client in crowd.clients]
    await crowd.close()
    say(before=before, after=after, ended=ended)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
