"""Stand in for QEMU with a guest in it: answer as the agent does, what a table says.

The table is JSON beside this file: an operation and its answer (``0 0 0 0`` if it has none), or a list of answers, of
which each boot gives the next, or for a race (``race LEFT | RIGHT``, whatever the delay) each try of any boot.
``DIES`` has the kernel die, ``STALLS`` fall silent, ``HANGS`` not return. Command lines are noted, one for each boot,
and delays.
"""

import json
import socket
import struct
import sys
import time
from itertools import pairwise
from pathlib import Path

HEAD = struct.Struct("<IB")
HERE = Path(__file__).parent


def main(command):
    with (HERE / "boots.txt").open("a") as boots:
        boots.write(" ".join(command) + "\n")
    table = json.loads((HERE / "table.json").read_text())
    boot = len((HERE / "boots.txt").read_text().splitlines()) - 1
    options = dict(pairwise(command))
    serial = Path(options["-serial"].removeprefix("file:"))
    chardevs = [word for word in command if word.startswith("socket,")]
    path = dict(word.split("=") for word in chardevs[0].split(",")[1:])["path"]
    serial.write_text("Linux version 7.3.4\n")
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        if table.get("greeting") == "NONE":
            return
        send(line, "H", "7.3.4 echo\n")
        while True:
            length, kind = HEAD.unpack(receive(line, HEAD.size))
            text = receive(line, length).decode()
            if chr(kind) == "Q":
                return
            answers = []
            for operation in text.split("\n"):
                turn = boot
                if operation.startswith("race "):
                    _, delay, sides = operation.split(" ", 2)
                    operation = f"race {sides}"
                    with (HERE / "delays.txt").open("a") as delays:
                        delays.write(f"{delay}\n")
                    turn = len((HERE / "delays.txt").read_text().splitlines()) - 1
                answer = table.get(operation, "0 0 0 0")
                if isinstance(answer, list):
                    answer = answer[min(turn, len(answer) - 1)]
                if answer == "DIES":
                    serial.open("a").write("BUG: kernel NULL pointer dereference\nRIP: 0010:do_it+0x10/0x20\n")
                    return
                if answer == "STALLS":
                    time.sleep(60)
                answers.append("HANG" if answer == "HANGS" else answer)
                if answer in ("HANGS", "STATUS 9"):
                    break
            send(line, "A", "".join(f"{answer}\n" for answer in answers))


def receive(line, n):
    found = b""
    while len(found) < n:
        more = line.recv(n - len(found))
        if not more:
            sys.exit()
        found += more
    return found


def send(line, kind, text):
    line.sendall(HEAD.pack(len(text), ord(kind)) + text.encode())


main(sys.argv[1:])
