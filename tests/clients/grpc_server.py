"""A gRPC server with every kind of method, on a free port that is the first line it prints.

The messages are plain bytes, so that no code has to be generated.
"""

import hashlib
import json
import threading
from concurrent import futures

from report import need, say

with need("grpcio"):
    import grpc

hung = {"begun": 0, "cancelled": 0}
lock = threading.Lock()


def echo(request, context):
    asked = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-vm", "grpc"),))
    context.set_trailing_metadata((("x-asked", asked.get("x-ask", "nothing")), ("x-raw-bin", b"\x00\xff\x01")))
    return request


def count(request, context):
    messages, size = map(int, request.split())
    for number in range(messages):
        yield (b"%d " % number).ljust(size, b"x")


def gather(requests, context):
    messages, length, digest = 0, 0, hashlib.sha256()
    for request in requests:
        messages += 1
        length += len(request)
        digest.update(request)
    return json.dumps({"messages": messages, "length": length, "sha256": digest.hexdigest()}).encode()


def chat(requests, context):
    for request in requests:
        yield request.upper()


def fail(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "no such VM: käse 100%")


def fail_late(request, context):
    yield from (b"one", b"two", b"three")
    context.set_trailing_metadata((("x-why", "enough"),))
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "three are enough")


def hang(request, context):
    """Answers only when nobody waits for it any more."""
    gone = threading.Event()
    context.add_callback(gone.set)
    with lock:
        hung["begun"] += 1
    if gone.wait(60):
        with lock:
            hung["cancelled"] += 1
    return b""


def tell_hung(request, context):
    with lock:
        return json.dumps(hung).encode()


def check(request, context):
    """grpc.health.v1: a HealthCheckRequest is field 1, a string; a HealthCheckResponse field 1, 1 for SERVING."""
    service = request[2:].decode()
    if service not in ("", "foregate.Test", "ill"):
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return b"\x08\x02" if service == "ill" else b"\x08\x01"


def main():
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Gather": grpc.stream_unary_rpc_method_handler(gather),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Hung": grpc.unary_unary_rpc_method_handler(tell_hung),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=40), options=[("grpc.so_reuseport", 0)])
    health = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    server.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler("foregate.Test", methods),
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
    ))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say(port=port)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
