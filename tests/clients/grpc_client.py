"""A gRPC client for grpc_server.py: one kind of call per run."""

import argparse
import json
import pathlib
import queue
import time
from concurrent import futures

from report import need, say, sha256

with need("grpcio"):
    import grpc

DEADLINE = 45


def fields(metadata):
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in metadata or ()}


def failure(error):
    return {
        "code": error.code().name,
        "details": error.details(),
        "trailing": fields(error.trailing_metadata()),
    }


def path(method):
    return f"/foregate.Test/{method}"


def unary(channel):
    echo = channel.unary_unary(path("Echo"))
    large = bytes(range(256)) * 12 * 1024  # 3 MiB, beyond every first window
    answer, call = echo.with_call(b"ping", timeout=DEADLINE, metadata=(("x-ask", "me"),))
    return {
        "answer": answer.decode(),
        "initial": fields(call.initial_metadata()),
        "trailing": fields(call.trailing_metadata()),
        "code": call.code().name,
        "large": echo(large, timeout=DEADLINE) == large,
        "empty": echo(b"", timeout=DEADLINE) == b"",
    }


def server_stream(channel):
    call = channel.unary_stream(path("Count"))(b"500 4096", timeout=DEADLINE)
    messages = list(call)
    return {
        "messages": len(messages),
        "in_order": all(m.split()[0] == b"%d" % n and len(m) == 4096 for n, m in enumerate(messages)),
        "code": call.code().name,
    }


def client_stream(channel):
    pieces = [b"%d " % n * 1000 for n in range(500)]
    answer = json.loads(channel.stream_unary(path("Gather"))(iter(pieces), timeout=DEADLINE))
    whole = b"".join(pieces)
    return {"answer": answer, "messages": len(pieces), "length": len(whole), "sha256": sha256(whole)}


def bidi(channel):
    """Each message is sent only after the answer to the one before: neither leg may hold anything back."""
    asked = queue.Queue()
    call = channel.stream_stream(path("Chat"))(iter(asked.get, None), timeout=DEADLINE)
    answers = []
    for word in ["amber", "jade", "indigo"] * 20:
        asked.put(word.encode())
        answers.append(next(call).decode())
    asked.put(None)
    return {"answers": answers, "rest": len(list(call)), "code": call.code().name}


def errors(channel):
    told = {}
    try:
        channel.unary_unary(path("Fail"))(b"", timeout=DEADLINE)
    except grpc.RpcError as error:
        told["at_once"] = failure(error)
    received = []
    try:
        for message in channel.unary_stream(path("FailLate"))(b"", timeout=DEADLINE):
            received.append(message.decode())
    except grpc.RpcError as error:
        told["late"] = failure(error) | {"received": received}
    try:
        channel.unary_unary(path("Nothing"))(b"", timeout=DEADLINE)
    except grpc.RpcError as error:
        told["unknown"] = failure(error)
    return told


def deadline(channel):
    """What the client gives up, the server must hear of: a deadline that passes, and a call that is cancelled."""
    hang, hung = channel.unary_unary(path("Hang")), channel.unary_unary(path("Hung"))

    def until(what, count):
        end = time.monotonic() + DEADLINE
        while json.loads(hung(b"", timeout=DEADLINE))[what] < count:
            if time.monotonic() > end:
                raise TimeoutError(f"the server never told {what} = {count}")
            time.sleep(0.01)

    call = hang.future(b"", timeout=DEADLINE)
    until("begun", 1)
    call.cancel()
    until("cancelled", 1)
    try:
        hang(b"", timeout=1)
    except grpc.RpcError as error:
        late = failure(error)
    until("cancelled", 2)
    return {"late": late}


def concurrent(channel):
    echo = channel.unary_unary(path("Echo"))

    def one(number):
        return echo(b"%d" % number, timeout=DEADLINE) == b"%d" % number

    with futures.ThreadPoolExecutor(20) as pool:
        return {"right": sum(pool.map(one, range(300)))}


def nobody(channel):
    try:
        channel.unary_unary(path("Echo"))(b"", timeout=DEADLINE)
    except grpc.RpcError as error:
        return failure(error)
    return {"code": "OK"}


KINDS = [unary, server_stream, client_stream, bidi, errors, deadline, concurrent, nobody]


def main():
    kinds = {kind.__name__: kind for kind in KINDS}
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--ca", help="speak TLS and trust this authority alone; without it h2c is spoken")
    options = parser.parse_args()
    target = f"127.0.0.1:{options.port}"
    authority = f"{options.host}:{options.port}"
    settings = [("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    if options.ca:
        trust = grpc.ssl_channel_credentials(root_certificates=pathlib.Path(options.ca).read_bytes())
        settings.append(("grpc.ssl_target_name_override", options.host))
        channel = grpc.secure_channel(target, trust, options=settings)
    else:
        channel = grpc.insecure_channel(target, options=settings)
    with channel:
        say(**kinds[options.kind](channel))


if __name__ == "__main__":
    main()
