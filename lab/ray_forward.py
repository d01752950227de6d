"""Forward connections from one network to another: a socket stays in the network that it was made in."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket


async def _forward(listening: socket.socket, address: str, port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(address, port)
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
            there_writer.close()
        writer.close()

    async with await asyncio.start_server(serve, sock=listening) as server:
        await server.serve_forever()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while part := await source.read(65_536):
        sink.write(part)
        await sink.drain()
    sink.write_eof()


def main() -> None:
    """Forward connections to a listening socket, which is inherited, to an address and port."""
    arguments = argparse.ArgumentParser(prog="python -m lab.ray_forward", description=main.__doc__)
    arguments.add_argument("listening", type=int)
    arguments.add_argument("address")
    arguments.add_argument("port", type=int)
    given = arguments.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_forward(socket.socket(fileno=given.listening), given.address, given.port))


if __name__ == "__main__":
    main()
