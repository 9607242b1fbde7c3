"""A VM that echoes WebSocket messages, unmasked: `python3 -m change.echo PORT`."""

import asyncio
import base64
import hashlib
import sys

KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def serve(reader, writer):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        key = next((line.split(b":", 1)[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")), b"")
        accept = base64.b64encode(hashlib.sha1(key + KEY).digest())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        while True:
            first, length = await reader.readexactly(2)
            mask = await reader.readexactly(4)
            body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(await reader.readexactly(length & 0x7F)))
            writer.write(bytes([first, len(body)]) + body)
            if first & 0xF == 8:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


async def main(port):
    server = await asyncio.start_server(serve, "127.0.0.1", int(port))
    await server.serve_forever()


asyncio.run(main(sys.argv[1]))
