"""aioquic that comes back with a session and asks at once: its request is in the first packets (0-RTT)."""

import argparse
import asyncio
import pathlib
import sys

from aioquic_client import H3_ALPN, Client, QuicConfiguration, connect
from report import need, say

with need("aioquic"):
    from aioquic.quic.events import HandshakeCompleted


class Returning(Client):
    """Hears nothing of the gateway until `mark` is there: until then nobody can have finished the handshake."""

    mark = None

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.unheard = []
        self.accepted = None

    def quic_event_received(self, event):
        if isinstance(event, HandshakeCompleted):
            self.accepted = event.early_data_accepted
        super().quic_event_received(event)

    def datagram_received(self, data, address):
        if self.mark is None or self.mark.exists():
            super().datagram_received(data, address)
        else:
            self.unheard.append((data, address))

    async def hear(self):
        while not self.mark.exists():
            await asyncio.sleep(0.01)
        for data, address in self.unheard:
            super().datagram_received(data, address)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--mark", type=pathlib.Path, required=True)
    options = parser.parse_args()
    tickets = asyncio.Queue()

    def configuration(ticket):
        made = QuicConfiguration(
            is_client=True, alpn_protocols=H3_ALPN, server_name=options.host, session_ticket=ticket
        )
        made.load_verify_locations(cafile=options.ca)
        return made

    async with connect(
        "127.0.0.1",
        options.port,
        configuration=configuration(None),
        create_protocol=Client,
        session_ticket_handler=tickets.put_nowait,
    ) as client:
        before = (await client.request("GET", options.host, "/before")).told()
        ticket = await tickets.get()

    Returning.mark = options.mark
    async with connect(
        "127.0.0.1",
        options.port,
        configuration=configuration(ticket),
        create_protocol=Returning,
        wait_connected=False,
    ) as client:
        asked = client.start("GET", options.host, options.path)
        await client.hear()
        early = (await asked.done).told()
        after = (await client.request("GET", options.host, "/after")).told()
    say(before=before, early=early, after=after, accepted=client.accepted)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
