"""A VM: an HTTP/1.1 server that falls ill in the way its second argument names when it gets SIGUSR1, and is well again
with SIGUSR2. It writes down when it served how many requests, a line every 50 ms.

    python3 -m drill.vm ADDRESS ILLNESS LOG
"""

import asyncio
import signal
import socket
import struct
import sys
import time

BODY = b"x" * 1024
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n"
SLOW, DRIPS = 6, 3
# Seconds for one answer of a VM that does one thing at a time.
TURN = 0.01


class Connection(asyncio.Protocol):
    def __init__(self, vm):
        self.vm, self.input = vm, b""

    def connection_made(self, transport):
        self.transport = transport
        self.vm.connections.add(self)

    def connection_lost(self, error):
        self.vm.connections.discard(self)

    def data_received(self, data):
        self.input += data
        while b"\r\n\r\n" in self.input:
            head, self.input = self.input.split(b"\r\n\r\n", 1)
            if b"upgrade: websocket" in head.lower():
                self.open_websocket()
            else:
                self.answer(head.startswith(b"HEAD"))

    def answer(self, head_only):
        if self.vm.illness == "capacity":
            return self.take_turn()
        if self.vm.ill:
            return getattr(self, self.vm.illness)()
        self.vm.served += 1
        self.transport.write(HEAD if head_only else HEAD + BODY)

    def take_turn(self):
        """Serves 100 requests a second, one after the other, however many come."""
        loop = asyncio.get_running_loop()
        self.vm.free = max(self.vm.free, loop.time()) + TURN
        loop.call_at(self.vm.free, self.take_turn_now)

    def take_turn_now(self):
        self.vm.served += 1
        self.transport.write(HEAD + BODY)

    def open_websocket(self):
        self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")

    def reset(self):
        """Closes with RST."""
        linger = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def reset_mid_head(self):
        self.transport.write(HEAD[:20])
        self.reset()

    def reset_mid_body(self):
        self.transport.write(HEAD + BODY[:500])
        asyncio.get_running_loop().call_later(0.01, self.reset)

    def fails(self):
        self.transport.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    def slow_head(self):
        loop = asyncio.get_running_loop()
        loop.call_later(SLOW, lambda: self.transport.write(HEAD + BODY))

    def slow_body(self):
        loop = asyncio.get_running_loop()
        self.transport.write(HEAD + BODY[:500])
        loop.call_later(DRIPS, lambda: self.transport.write(BODY[500:]))

    def garbage(self):
        self.transport.write(b"SSH-2.0-nonsense\r\n\r\n")
        self.transport.close()

    def silent(self):
        pass


class Vm:
    def __init__(self, address, illness, log):
        (self.host, self.port), self.illness, self.log = address.split(":"), illness, open(log, "a")
        # When it is done with what it has to do.
        self.free = 0.0
        self.ill, self.served, self.connections, self.server = False, 0, set(), None

    async def listen(self):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Connection(self), self.host, int(self.port), backlog=1024)

    def fall_ill(self):
        if self.illness != "refuses":
            self.ill = True
            return
        self.server.close()
        for connection in list(self.connections):
            connection.transport.abort()

    def heal(self):
        self.ill = False
        if not self.server.is_serving():
            self.listening = asyncio.ensure_future(self.listen())

    async def run(self):
        await self.listen()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.fall_ill)
        loop.add_signal_handler(signal.SIGUSR2, self.heal)
        while True:
            await asyncio.sleep(0.05)
            if self.served:
                print(f"{time.time():.3f} {self.served}", file=self.log, flush=True)
                self.served = 0


if __name__ == "__main__":
    asyncio.run(Vm(*sys.argv[1:4]).run())
