"""aioquic with several connections on one UDP socket, which all of them leave for others, with requests under way.

First each asks for `path`. Then, for each address of `moves`: each asks for `large`, and when that has begun all go
on from a new socket of that address with new connection ids, and ask for `path` until the answer is the address."""

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

    async def bind(self, address):
        loop = asyncio.get_running_loop()
        # Not closed before the others are used: the last answers may still come to the old port.
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Socket(self.clients), local_addr=(address, 0)
        )
        for client in self.clients:
            client._transport = transport
        return transport

    async def connect(self):
        transport = await self.bind("127.0.0.1")
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

    def start(self, path):
        return [client.start("GET", self.options.host, path) for client in self.clients]

    async def ask(self):
        return [(await answer.done).told() for answer in self.start(self.options.path)]

    async def move(self, address):
        large = self.start(self.options.large)
        await asyncio.gather(*(answer.begun.wait() for answer in large))
        await self.bind(address)
        for client in self.clients:
            client.change_connection_id()
        asked = [await self.ask()]
        while any(answer["text"] != address for answer in asked[-1]):
            asked.append(await self.ask())
        large = [(await answer.done).told() for answer in large]
        return {"address": address, "asked": asked, "large": large}

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
    parser.add_argument("--large", required=True)
    parser.add_argument("--moves", nargs="+", required=True)
    parser.add_argument("--count", type=int, default=4)
    crowd = Crowd(parser.parse_args())
    await crowd.connect()
    before = await crowd.ask()
    moves = [await crowd.move(address) for address in crowd.options.moves]
    ended = [client.ended for client in crowd.clients]
    await crowd.close()
    say(before=before, moves=moves, ended=ended)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
