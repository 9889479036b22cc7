"""A WebSocket through HTTP/2 (RFC 8441); arguments: port, file of the root certificate, host."""
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events

port, root, host = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
context.set_alpn_protocols(["h2"])
tls = context.wrap_socket(socket.create_connection(("127.0.0.1", int(port)), 20), server_hostname=host)
assert tls.selected_alpn_protocol() == "h2"
connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
connection.initiate_connection()
tls.sendall(connection.data_to_send())
events = []


def until(kind):
    """Reads until there is such an event; it is taken out."""
    while True:
        for event in events:
            if isinstance(event, kind):
                events.remove(event)
                return event
        data = tls.recv(65536)
        assert data, "the connection ended"
        events.extend(connection.receive_data(data))
        tls.sendall(connection.data_to_send())


until(h2.events.RemoteSettingsChanged)
assert connection.remote_settings.enable_connect_protocol == 1
sockets = []
for _ in range(3):
    stream = connection.get_next_available_stream_id()
    connection.send_headers(
        stream,
        [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":path", "/ws"),
            (":authority", host),
            ("sec-websocket-version", "13"),
            ("origin", "https://" + host),
        ],
    )
    sockets.append(stream)
tls.sendall(connection.data_to_send())
for _ in sockets:
    answer = until(h2.events.ResponseReceived)
    assert dict(answer.headers)[":status"] == "200", answer.headers
    assert "sec-websocket-accept" not in dict(answer.headers), answer.headers
for round in range(20):
    for stream in sockets:
        text = f"echo:{stream} {round}".encode()
        connection.send_data(stream, bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
    tls.sendall(connection.data_to_send())
    for _ in sockets:
        event = until(h2.events.DataReceived)
        assert event.data[2:] == f"{event.stream_id} {round}".encode(), event
# One ends, the others go on.
connection.end_stream(sockets[0])
tls.sendall(connection.data_to_send())
assert until(h2.events.StreamEnded).stream_id == sockets[0]
connection.send_data(sockets[1], bytes([0x81, 0x86, 0, 0, 0, 0]) + b"echo:x")
tls.sendall(connection.data_to_send())
while True:
    event = until(h2.events.DataReceived)
    if event.stream_id == sockets[1]:
        assert event.data[2:] == b"x", event
        break
print("conversations go on")
