"""Notes: a small JSON API over SQLite, and one page. Standard library only."""
import json
import os
import re
import signal
import socket
import socketserver
import sqlite3
import sys
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MAX_BODY = 64 * 1024
MAX_TEXT = 1000
PAGE = Path(__file__).with_name("index.html").read_bytes()


class Notes:
    """One SQLite connection, shared by all threads behind a lock."""

    def __init__(self, path):
        self.lock = threading.Lock()
        self.db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        self.db.row_factory = sqlite3.Row
        self.db.execute("PRAGMA journal_mode = WAL")  # two versions may overlap during a deploy
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS notes ("
            " id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL, created_at TEXT NOT NULL)"
        )

    def all(self):
        with self.lock:
            return [dict(row) for row in self.db.execute("SELECT * FROM notes ORDER BY id DESC")]

    def add(self, text):
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self.lock:
            cursor = self.db.execute("INSERT INTO notes (text, created_at) VALUES (?, ?)", (text, now))
            return {"id": cursor.lastrowid, "text": text, "created_at": now}

    def remove(self, note_id):
        with self.lock:
            return self.db.execute("DELETE FROM notes WHERE id = ?", (note_id,)).rowcount > 0

    def close(self):
        self.lock.acquire()  # lets a running write finish, and no other one begin
        self.db.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    disable_nagle_algorithm = True
    timeout = 75

    # --- what the app does ---

    def page(self):
        self.reply(200, PAGE, "text/html; charset=utf-8")

    def health(self):
        self.reply(200, b"ok", "text/plain")

    def list_notes(self):
        self.reply_json(200, self.server.notes.all())

    def add_note(self):
        try:
            text = json.loads(self.body)["text"].strip()
            text.encode()  # a lone surrogate is valid JSON, but not valid text
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return self.reply_json(400, {"error": 'expected JSON: {"text": "..."}'})
        if not 1 <= len(text) <= MAX_TEXT:
            return self.reply_json(422, {"error": f"text must have 1 to {MAX_TEXT} characters"})
        self.reply_json(201, self.server.notes.add(text))

    def delete_note(self, note_id):
        if self.server.notes.remove(int(note_id)):
            return self.reply(204)
        self.reply_json(404, {"error": "no such note"})

    ROUTES = [
        ("GET", r"/", page),
        ("GET", r"/healthz", health),
        ("GET", r"/api/notes", list_notes),
        ("POST", r"/api/notes", add_note),
        ("DELETE", r"/api/notes/([0-9]{1,18})", delete_note),
    ]

    # --- how it speaks HTTP ---

    def dispatch(self):
        if not self.read_body():
            return
        path = self.path.split("?", 1)[0]
        wanted = "GET" if self.command == "HEAD" else self.command
        allow = []
        for method, pattern, action in self.ROUTES:
            if match := re.fullmatch(pattern, path):
                if method == wanted:
                    try:
                        return action(self, *match.groups())
                    except sqlite3.Error as error:
                        self.log_error("database: %s", error)
                        return self.reply_json(503, {"error": "the database is not available"})
                allow.append(method)
        if allow:
            return self.reply_json(405, {"error": "method not allowed"}, {"Allow": ", ".join(allow)})
        self.reply_json(404, {"error": "not found"})

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = dispatch

    def read_body(self):
        """Read the whole body into self.body; False if the request was refused."""
        length = ",".join(self.headers.get_all("Content-Length", ["0"]))
        if "Transfer-Encoding" in self.headers:
            return self.refuse(411, "Content-Length required")
        if not re.fullmatch(r"[0-9]{1,18}", length):
            return self.refuse(400, "bad Content-Length")
        if int(length) > MAX_BODY:
            return self.refuse(413, f"body over {MAX_BODY} bytes")
        self.body = self.rfile.read(int(length))
        self.close_connection |= len(self.body) < int(length)  # the client went away
        return len(self.body) == int(length)

    def refuse(self, status, message):
        """Answer with the body unread, then drain it a while: closing at once could lose the answer."""
        self.reply_json(status, {"error": message}, {"Connection": "close"})
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            end = time.monotonic() + 2
            while time.monotonic() < end and self.rfile.read1(65536):
                pass
        except OSError:
            pass
        return False

    def reply_json(self, status, value, headers={}):
        self.reply(status, json.dumps(value).encode(), "application/json", headers)

    def reply(self, status, body=b"", kind=None, headers={}):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:  # a 204 has neither a body nor a length
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_request(self, code="-", size="-"):
        if self.path != "/healthz":
            super().log_request(code, size)


class Server(ThreadingHTTPServer):
    request_queue_size = 128

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # without HTTPServer's DNS look-up
        self.server_name, self.server_port = self.server_address

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):  # a client that hung up is no news
            super().handle_error(request, client_address)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = Server(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Handler, bind_and_activate=False)
    server.notes = Notes(Path(os.environ.get("DATA_DIR", "/data")) / "notes.db")
    try:
        server.server_bind()
        server.server_activate()
        print(f"notes on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
    except (KeyboardInterrupt, SystemExit):
        server.notes.close()
        os._exit(0)  # at once: do not wait for idle keep-alive threads


if __name__ == "__main__":
    main()
