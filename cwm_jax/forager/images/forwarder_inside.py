"""Inside a sandbox without a network: a port of this machine's that leads to a socket outside.

``python forwarder_inside.py SOCKET PORT``: returns once it listens, and goes on by itself.
"""

import asyncio
import os
import socket
import sys


async def serve(path, listener):
    async def connected(reader, writer):
        try:
            outer_reader, outer_writer = await asyncio.open_unix_connection(path)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, outer_writer), copy(outer_reader, writer))
        outer_writer.close()
        writer.close()

    server = await asyncio.start_server(connected, sock=listener)
    await server.serve_forever()


async def copy(reader, writer):
    try:
        while content := await reader.read(1 << 16):
            writer.write(content)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


def main(path, port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    if os.fork():
        return
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    asyncio.run(serve(path, listener))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
