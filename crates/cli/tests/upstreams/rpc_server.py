"""A gRPC server: bytes in, bytes out."""
import os
import time
from concurrent import futures

import grpc


def upper(request, context):
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: ä")
    if request == b"sleep":
        time.sleep(5)
    told = dict(context.invocation_metadata())
    context.set_trailing_metadata((("told", told.get("who", "")),))
    return request.upper()


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()
        time.sleep(0.01)


def total(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def chat(requests, context):
    for request in requests:
        yield b"heard " + request


handlers = {
    "Upper": grpc.unary_unary_rpc_method_handler(upper),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Rpc", handlers),))
server.add_insecure_port("127.0.0.1:" + os.environ["PORT"])
server.start()
server.wait_for_termination()
