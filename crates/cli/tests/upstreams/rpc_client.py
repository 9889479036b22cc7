"""Every kind of gRPC call, through the gateway; arguments: port, file of the root certificate."""
import queue
import sys

import grpc

port, root = sys.argv[1:]
credentials = grpc.ssl_channel_credentials(open(root, "rb").read())
names = (("grpc.ssl_target_name_override", "rpc.test"), ("grpc.default_authority", "rpc.test"))
channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, names)

upper = channel.unary_unary("/test.Rpc/Upper")
answer, call = upper.with_call(b"abc", timeout=10, metadata=(("who", "me"),))
assert answer == b"ABC", answer
assert dict(call.trailing_metadata())["told"] == "me", call.trailing_metadata()
large = b"x" * 3_000_000
assert upper(large, timeout=20) == large.upper()

for request, code in ((b"fail", grpc.StatusCode.FAILED_PRECONDITION), (b"sleep", grpc.StatusCode.DEADLINE_EXCEEDED)):
    try:
        upper(request, timeout=1)
        raise AssertionError("it must fail")
    except grpc.RpcError as error:
        assert error.code() == code, error
        if request == b"fail":
            assert error.details() == "as asked: ä", error.details()
try:
    channel.unary_unary("/test.Rpc/Nothing")(b"", timeout=10)
    raise AssertionError("it must fail")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error

count = channel.unary_stream("/test.Rpc/Count")
assert list(count(b"50", timeout=10)) == [str(number).encode() for number in range(50)]
total = channel.stream_unary("/test.Rpc/Total")
assert total((b"x" * 10_000 for _ in range(200)), timeout=20) == b"2000000"

# Both ways at once: each answer is waited for before the next word.
words = queue.Queue()
chat = channel.stream_stream("/test.Rpc/Chat")(iter(words.get, None), timeout=20)
for number in range(20):
    words.put(str(number).encode())
    assert next(chat) == b"heard " + str(number).encode()
words.put(None)
assert list(chat) == []

futures = [upper.future(str(number).encode(), timeout=20) for number in range(200)]
assert [future.result() for future in futures] == [str(number).encode() for number in range(200)]
print("all calls are as they should be")
