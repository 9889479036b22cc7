"""A small app for tests. GET / says @BODY@; the rest is below."""
import http.server, json, os, signal, sys, time, urllib.parse

BODY = "@BODY@"

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one segment

    def answer(self, status, body, kind="text/plain"):
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/headers":
            self.answer(200, json.dumps({k.lower(): v for k, v in self.headers.items()}))
        elif url.path == "/path":
            self.answer(200, self.path)
        elif url.path == "/env":
            self.answer(200, json.dumps(dict(os.environ)))
        elif url.path == "/slow":
            time.sleep(float(url.query or "1"))
            self.answer(200, "slow")
        elif url.path == "/ws":
            # A WebSocket that listens and says nothing.
            import base64, hashlib
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "websocket")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            self.wfile.flush()
            while self.rfile.read(1):
                pass
            self.close_connection = True
        elif url.path == "/count":
            path = os.path.join(os.environ.get("DATA_DIR", "/tmp"), "count")
            count = int(open(path).read()) + 1 if os.path.exists(path) else 1
            open(path, "w").write(str(count))
            self.answer(200, str(count))
        elif url.path == "/exit":
            self.answer(200, "bye")
            self.wfile.flush()
            os._exit(int(url.query or "1"))
        elif url.path == "/eval":
            # The test's own hand inside the sandbox.
            try:
                scope = {}
                exec(urllib.parse.unquote(url.query), scope)
                self.answer(200, str(scope.get("result")))
            except BaseException as error:
                self.answer(500, f"{type(error).__name__}: {error}")
        else:
            self.answer(200, BODY)

    do_HEAD = do_GET

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        data = self.rfile.read(length)
        self.answer(200, f"{len(data)}")

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

def main():
    server = Server((os.environ.get("BIND", "127.0.0.1"), int(os.environ["PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever()

main()
