"""A program in the place of the gateway's that comes to grief at a certain point of the hand-over.

    successor.py POINT run --config FILE ...

POINT is where it kills itself: "testament", "sockets", "ready", "take over", "done"; or "silent", where it says nothing any
more after it was told to take over.
"""

import json
import os
import signal
import socket
import sys
import time

point = sys.argv[1]
channel = socket.socket(fileno=0)


def exactly(length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = channel.recv(length - len(data))
        if not piece:
            sys.exit("the other one has gone")
        data += piece
    return data


def hear() -> dict:
    return json.loads(exactly(int.from_bytes(exactly(4), "big")))


def say(word: str) -> None:
    text = json.dumps({"word": word, "of": "a later version"}).encode()
    channel.sendall(len(text).to_bytes(4, "big") + text)


def reaches(here: str) -> None:
    if here == point:
        os.kill(os.getpid(), signal.SIGKILL)


testament = hear()
reaches("testament")
missing = sum(spot["sockets"] for spot in testament["spots"])
sockets = []
while missing > len(sockets):
    _, files, _, _ = socket.recv_fds(channel, 1, 253)
    sockets += files
reaches("sockets")
say("ready")
reaches("ready")
assert hear()["word"] == "take over"
reaches("take over")
if point == "silent":
    time.sleep(60)
say("done")
reaches("done")
