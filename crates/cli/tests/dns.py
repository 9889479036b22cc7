"""A name server for tests: UDP and TCP at the address that it is given. Some names have odd answers."""
import socket, struct, sys, threading

NAMES = {
    "good.test": ["198.51.100.10"],
    "also.test": ["198.51.100.11"],
    "wild.test": ["198.51.100.12"],
    "a.wild.test": ["198.51.100.12"],
    "b.a.wild.test": ["198.51.100.12"],
    "port.test": ["198.51.100.13"],
    "host.test": ["198.51.100.1"],
    "meta.test": ["169.254.169.254"],
    "cloud.test": ["100.100.100.200"],
    "private.test": ["10.250.0.10"],
    "loopback.test": ["127.0.0.1", "0.0.0.0"],
    "mixed.test": ["169.254.169.254", "198.51.100.10", "10.250.0.10"],
    "flip.test": ["198.51.100.12"],
}
ALIASES = {"alias.test": "cdn.example", "cdn.example": "also.test", "loop.test": "loop.test", "sly.test": "meta.test"}


def wire(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def record(name, kind, content):
    return wire(name) + struct.pack(">HHIH", kind, 1, 1, len(content)) + content


def answer(message):
    at, labels = 12, []
    while message[at]:
        labels.append(message[at + 1:at + 1 + message[at]].decode().lower())
        at += 1 + message[at]
    question, kind = message[12:at + 5], struct.unpack(">H", message[at + 1:at + 3])[0]
    name, records = ".".join(labels), []
    if name == "broken.test":
        # A record whose name is a pointer to itself.
        records = [struct.pack(">H", 0xC000 | (12 + len(question))) + struct.pack(">HHIH", 1, 1, 1, 4) + b"\1\2\3\4"]
    for _ in range(4):
        if name in ALIASES:
            records.append(record(name, 5, wire(ALIASES[name])))
            name = ALIASES[name]
    if kind == 1:
        records += [record(name, 1, socket.inet_aton(address)) for address in NAMES.get(name, [])]
    if kind == 28 and name in NAMES:
        records.append(record(name, 28, socket.inet_pton(socket.AF_INET6, "2001:db8::1")))
    if name == "flip.test" and kind == 1:
        NAMES[name] = ["10.250.0.10"]
    code = 0 if records or name in NAMES else 3
    return message[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(records), 0, 0) + question + b"".join(records)


def serve_tcp(listener):
    while True:
        stream, _ = listener.accept()
        head = stream.recv(2, socket.MSG_WAITALL)
        # Whoever only looks whether we are there says nothing.
        if len(head) == 2:
            reply = answer(stream.recv(struct.unpack(">H", head)[0], socket.MSG_WAITALL))
            stream.sendall(struct.pack(">H", len(reply)) + reply)
        stream.close()


address = sys.argv[1]
listener = socket.create_server((address, 53))
threading.Thread(target=serve_tcp, args=(listener,), daemon=True).start()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((address, 53))
while True:
    message, asker = udp.recvfrom(4096)
    udp.sendto(answer(message), asker)
