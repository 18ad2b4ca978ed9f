"""The client of the library `websockets` before an echo. Usage: websocket_client.py URL [AUTHORITY]"""

import asyncio
import os
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

url, *authority = sys.argv[1:]
options = {"max_size": None, "proxy": None}
if authority:
    options["ssl"] = ssl.create_default_context(cafile=authority[0])
    # The name of the certificate, at the address of this machine.
    options["host"] = "127.0.0.1"


async def main():
    async with connect(url, subprotocols=["other", "chat"], **options) as socket:
        assert socket.subprotocol == "chat", socket.subprotocol
        assert any(extension.name == "permessage-deflate" for extension in socket.protocol.extensions)
        for message in ["", "text", "ü" * 70_000, b"", os.urandom(200), os.urandom(3 << 20)]:
            await socket.send(message)
            assert await socket.recv() == message
        # A message in fragments, with a ping between them.
        parts = [b"a" * 10, b"b" * 70_000, b"c"]

        async def fragments():
            for part in parts:
                await (await socket.ping())
                yield part

        await socket.send(fragments())
        assert await socket.recv() == b"".join(parts)
        await (await socket.ping(b"data"))
    assert socket.close_code == 1000, socket.close_code

    # Without compression, all sizes at which the header of a frame changes.
    async with connect(url, compression=None, **options) as socket:
        for size in [1, 125, 126, 127, 65535, 65536]:
            await socket.send(b"x" * size)
            assert len(await socket.recv()) == size
        await socket.close(4000, "enough")
    assert socket.close_code == 4000, socket.close_code

    async with connect(url, **options) as socket:
        await socket.send("close")
        try:
            await socket.recv()
            raise SystemExit("the socket is open")
        except (ConnectionClosedOK, ConnectionClosedError) as error:
            assert (error.rcvd.code, error.rcvd.reason) == (4001, "as you wish"), error

    # Many at a time.
    async def one(number):
        async with connect(url, **options) as socket:
            for _ in range(20):
                await socket.send(str(number) * 100)
                assert await socket.recv() == str(number) * 100

    await asyncio.gather(*(one(number) for number in range(50)))


asyncio.run(main())
