"""Replays HTTP/2 cases frame by frame; arguments: port, file of the root certificate, file with the cases.
Prints one JSON object: for each case, what came of it."""
import json
import socket
import ssl
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import hpack

port, root, cases = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
context.set_alpn_protocols(["h2"])


def raw(text):
    return text.encode("latin-1")


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(list):
    """Literal, never indexed: what is asked for is what is sent."""
    def text(value):
        value = raw(value)
        length = len(value)
        if length < 127:
            return bytes([length]) + value
        out, rest = [127], length - 127
        while rest >= 128:
            out.append(rest % 128 | 128)
            rest //= 128
        return bytes(out + [rest]) + value

    return b"".join(b"\x10" + text(name) + text(value) for name, value in list)


def block(stream, payload, end):
    """HEADERS and, for what does not fit into one frame, CONTINUATION."""
    parts = [payload[at : at + 16384] for at in range(0, len(payload), 16384)] or [b""]
    out = b""
    for number, part in enumerate(parts):
        flags = (4 if number == len(parts) - 1 else 0) | (1 if end and number == 0 else 0)
        out += frame(1 if number == 0 else 9, flags, stream, part)
    return out


def replay(case):
    with socket.create_connection(("127.0.0.1", int(port)), 10) as plain:
        with context.wrap_socket(plain, server_hostname="corpus.test") as tls:
            tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
            data, trailers = case.get("data", []), case.get("trailers")
            out = block(1, headers(case["headers"]), not data and trailers is None)
            for number, piece in enumerate(data):
                end = number == len(data) - 1 and trailers is None
                out += frame(0, int(end), 1, raw(piece))
            if trailers is not None:
                out += block(1, headers(trailers), True)
            try:
                tls.sendall(out)
                return answer(tls)
            except (ConnectionError, ssl.SSLError):
                return "closed"
            except TimeoutError:
                return "hangs"


def answer(tls):
    """The first that tells: a status, RST_STREAM, GOAWAY, or the end."""
    decoder, data = hpack.Decoder(), b""
    while True:
        while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
            length, kind, payload = int.from_bytes(data[:3], "big"), data[3], data[9:]
            payload, data = payload[:length], data[9 + length :]
            if kind == 1:
                return int(dict(decoder.decode(payload))[":status"])
            if kind == 3:
                return "reset"
            if kind == 7 and struct.unpack(">I", payload[4:8])[0] != 0:
                return "goaway"
        more = tls.recv(65536)
        if not more:
            return "closed"
        data += more


with open(cases) as lines:
    list = [json.loads(line) for line in lines]
with ThreadPoolExecutor(4) as pool:
    print(json.dumps(dict(zip((case["id"] for case in list), pool.map(replay, list)))))
