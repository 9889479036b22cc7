# A raw HTTP/1.1 server that says back what it was sent, and remembers every request line.
import json, os, socket, threading

seen = []

def lines(file):
    out = []
    while True:
        line = file.readline(1 << 17)
        if not line:
            return None
        if not line.endswith(b"\r\n"):
            seen.append("bare LF: " + line.decode("latin-1"))
        if line == b"\r\n":
            return out
        out.append(line[:-2])

def body(file, head):
    fields = [line.split(b": ", 1) for line in head[1:]]
    named = lambda name: [v for k, v in fields if k.lower() == name]
    codings, lengths = named(b"transfer-encoding"), named(b"content-length")
    if codings and lengths or len(codings) > 1 or len(lengths) > 1:
        seen.append("two framings: " + repr(head))
    if codings:
        out = b""
        while True:
            size = int(file.readline().strip(), 16)
            out += file.read(size)
            if size:
                if file.readline() != b"\r\n":
                    raise ValueError("chunk")
            else:
                while file.readline() not in (b"\r\n", b""):
                    pass
                return out
    return file.read(int(lengths[0])) if lengths else b""

def serve(connection):
    file = connection.makefile("rb")
    try:
        while True:
            head = lines(file)
            if not head:
                return
            method, target, _ = head[0].decode("latin-1").split(" ")
            if target == "/seen":
                answer = json.dumps(seen).encode()
            else:
                # Noted before the body: a request that is cut off was seen, too.
                seen.append(head[0].decode("latin-1"))
                sent = body(file, head)
                answer = json.dumps({"method": method, "path": target, "body": sent.decode("latin-1"),
                                     "head": [line.decode("latin-1") for line in head]}).encode()
            out = b"" if method == "HEAD" else answer
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), out))
    except Exception:
        pass
    finally:
        connection.close()

listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=256)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
