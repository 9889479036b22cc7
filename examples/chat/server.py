"""Chat: one WebSocket room (RFC 6455) on asyncio streams. Standard library only."""
import asyncio
import base64
import hashlib
import os
import signal
import struct
from pathlib import Path

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MAX_MESSAGE = 64 * 1024
MAX_QUEUE = 512 * 1024  # unsent bytes after which a client counts as too slow
MAX_CLIENTS = 200
HEARTBEAT = 30  # seconds
PAGE = Path(__file__).with_name("index.html").read_bytes()

clients = set()


class Close(Exception):
    """Ends a conversation with this close code; None for a close frame without one."""

    def __init__(self, code):
        self.code = code


class Client:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.alive, self.closed = True, False

    def send(self, opcode, payload=b""):
        if self.closed or self.writer.is_closing():
            return
        if self.writer.transport.get_write_buffer_size() > MAX_QUEUE:
            return self.writer.transport.abort()
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
        self.writer.write(head + payload)

    def close(self, code):
        self.send(CLOSE, b"" if code is None else struct.pack("!H", code))
        self.closed = True

    async def frame(self, room):
        """The next frame, whose data may take at most `room` bytes."""
        first, second = await self.reader.readexactly(2)
        final, opcode, size = first >> 7, first & 15, second & 127
        if first & 0x70 or not second & 0x80:
            raise Close(1002)  # no extension was agreed on, and clients must mask
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise Close(1002)
        if opcode >= CLOSE and (size > 125 or not final):
            raise Close(1002)
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
        if opcode < CLOSE and size > room:
            raise Close(1009)
        key = await self.reader.readexactly(4)
        data = await self.reader.readexactly(size)
        mask = (key * (size // 4 + 1))[:size]
        data = int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")
        return final, opcode, data.to_bytes(size, "big")

    async def messages(self):
        """Every whole text message; pings and fragments are dealt with on the way."""
        message = None
        while True:
            final, opcode, data = await self.frame(MAX_MESSAGE - len(message or b""))
            self.alive = True
            if opcode == PING:
                self.send(PONG, data)
                await self.writer.drain()
            elif opcode == CLOSE:
                raise Close(close_code(data))
            elif opcode == BINARY:
                raise Close(1003)
            elif opcode in (TEXT, CONTINUATION):
                if (opcode == TEXT) != (message is None):
                    raise Close(1002)  # out of order
                message = (message or bytearray()) + data
                if final:
                    yield text(message)
                    message = None


def text(data):
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Close(1007) from None


def close_code(data):
    """The code with which to answer a close frame."""
    if not data:
        return None
    text(data[2:])
    code = int.from_bytes(data[:2], "big") if len(data) > 1 else 0
    known = 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
    return code if known else 1002


async def converse(client):
    clients.add(client)
    try:
        async for message in client.messages():
            if message.startswith("echo:"):
                client.send(TEXT, message[5:].encode())
            else:
                payload = message.encode()
                for each in list(clients):
                    each.send(TEXT, payload)
            await client.writer.drain()  # who does not read may not go on writing
    except Close as end:
        client.close(end.code)
    finally:
        clients.discard(client)
    # Half-close, then drain a moment: closing on unread data could lose the close frame.
    client.writer.write_eof()
    await asyncio.wait_for(drained(client.reader), 1)


async def drained(reader):
    while await reader.read(65536):
        pass


async def request(reader, writer):
    """Serve one HTTP request; True to keep the connection."""

    def reply(status, body=b"", kind="text/plain", extra="", keep=False):
        extra += "" if keep else "Connection: close\r\n"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{extra}\r\n".encode()
            + (b"" if method == "HEAD" else body)
        )
        return keep

    method = ""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 75)
        first, *lines = head.decode("latin-1")[:-4].split("\r\n")
        method, target, version = first.split(" ")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    except asyncio.LimitOverrunError:
        return reply("431 Request Header Fields Too Large")
    except ValueError:
        return reply("400 Bad Request", b"bad request")

    connection = headers.get("connection", "").lower()
    if method not in ("GET", "HEAD") or "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return reply("405 Method Not Allowed", extra="Allow: GET, HEAD\r\n")
    keep = version == "HTTP/1.1" and "close" not in connection
    path = target.split("?", 1)[0]
    if path == "/":
        reply("200 OK", PAGE, "text/html; charset=utf-8", keep=keep)
    elif path == "/healthz":
        reply("200 OK", b"ok", keep=keep)
    elif path != "/ws":
        reply("404 Not Found", b"not found", keep=keep)
    elif headers.get("upgrade", "").lower() != "websocket" or "upgrade" not in connection or method != "GET":
        reply("426 Upgrade Required", b"a WebSocket lives here", extra="Upgrade: websocket\r\n", keep=keep)
    elif headers.get("sec-websocket-version") != "13":
        reply("426 Upgrade Required", extra="Sec-WebSocket-Version: 13\r\n", keep=keep)
    elif len(headers.get("sec-websocket-key", "")) != 24:
        reply("400 Bad Request", b"bad Sec-WebSocket-Key", keep=keep)
    elif len(clients) >= MAX_CLIENTS:
        reply("503 Service Unavailable", b"the room is full", keep=keep)
    else:
        digest = hashlib.sha1(headers["sec-websocket-key"].encode("latin-1") + GUID).digest()
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        await converse(Client(reader, writer))
        return False
    await writer.drain()
    return keep


async def serve(reader, writer):
    try:
        while await request(reader, writer):
            pass
    except (EOFError, OSError, asyncio.TimeoutError, asyncio.CancelledError):
        pass  # the client went away, or we do
    finally:
        writer.close()


async def heartbeat():
    """Ping everyone; whoever stays silent for a whole round is gone."""
    while True:
        await asyncio.sleep(HEARTBEAT)
        for client in list(clients):
            if not client.alive:
                client.writer.transport.abort()
            client.alive = False
            client.send(PING)


async def main():
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    port = int(os.environ.get("PORT", "8000"))
    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=16 * 1024, backlog=128)
    beat = asyncio.create_task(heartbeat())
    print(f"chat on http://127.0.0.1:{port}", flush=True)
    await stop.wait()

    server.close()
    beat.cancel()
    for client in list(clients):
        client.close(1001)  # going away: the page reconnects to the next version
    for _ in range(50):  # half a second for their goodbyes
        if not clients:
            break
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(main())
