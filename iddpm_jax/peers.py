"""The processes of one run watch each other: when one is gone, the others end with one line.

JAX would notice by missing heartbeats, and abort with a page of its own; a closed connection is
noticed at once. Every process is connected to process 0, which tells the others.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

CONNECT_SECONDS = 30
GOODBYE = b"bye"

_ending = threading.Lock()


def end_process(line: str) -> None:
    """Say one line and end the process at once, with exit code 1.

    Threads of a library that wait for what will not come would keep an ordinary exit from ending.
    """
    if _ending.acquire(blocking=False):  # of several reasons the first counts
        print(f"\nerror: {line}", file=sys.stderr, flush=True)
        os._exit(1)
    threading.Event().wait()


def lost(process: int | str) -> str:
    """The line about a process that is gone."""
    return (
        f"process {process} of this run has ended or cannot be reached; start all of them again "
        "with the same command, which goes on from the newest checkpoint"
    )


class Peers:
    """Connections between the processes of a run. A context manager.

    Leaving it waits until all are done; leaving it by an exception ends the others.

    Args:
        listener: in process 0, where the others will connect; None in the others.
        address: (host, port) of that listener.
        index: which process this is.
        count: how many there are, 2 or more.
        end: told a line when another process is gone; never returns, but in tests.

    Raises:
        OSError: process 0 cannot be reached within CONNECT_SECONDS. Others go on watching.
    """

    def __init__(
        self,
        listener: socket.socket | None,
        address: tuple[str, int],
        index: int,
        count: int,
        end: Callable[[str], None] = end_process,
    ):
        self._end, self._failed = end, False
        self._sockets: dict[int, socket.socket] = {}
        if listener is not None:
            listener.settimeout(CONNECT_SECONDS)
            with contextlib.suppress(TimeoutError):  # who cannot come is not watched
                for _ in range(count - 1):
                    connection, _ = listener.accept()
                    connection.settimeout(CONNECT_SECONDS)
                    self._sockets[int.from_bytes(connection.recv(4), "big")] = connection
            listener.close()
        else:
            connection = socket.create_connection(address, CONNECT_SECONDS)
            connection.sendall(index.to_bytes(4, "big"))
            self._sockets[0] = connection
        for connection in self._sockets.values():
            _keep_alive(connection)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peers":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._failed = kind is not None
        if not self._failed:
            self._tell(GOODBYE)
            self._thread.join()
        for connection in self._sockets.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # closed without a goodbye: others end
        self._thread.join()
        for connection in self._sockets.values():
            connection.close()

    def _tell(self, message: bytes) -> None:
        for connection in self._sockets.values():
            with contextlib.suppress(OSError):
                connection.sendall(message)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for process, connection in self._sockets.items():
                connection.settimeout(None)
                selector.register(connection, selectors.EVENT_READ, process)
            while selector.get_map():
                for key, _ in selector.select():
                    message = _received(key.fileobj)
                    if message == GOODBYE:
                        selector.unregister(key.fileobj)
                        continue
                    if self._failed:
                        return
                    gone = message or str(key.data).encode()
                    if key.data != 0:  # this is process 0, whose end JAX takes amiss
                        self._tell(gone)
                        time.sleep(0.5)
                    self._end(lost(gone.decode()))
                    return


def _received(connection: socket.socket) -> bytes:
    """What a process says: GOODBYE, the number of one that is gone, or nothing if it is gone."""
    try:
        return connection.recv(16)
    except OSError:
        return b""


def _keep_alive(connection: socket.socket) -> None:
    """Notice within half a minute when the machine at the other end is gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def own_address() -> str:
    """The IPv4 address by which other machines reach this one, as far as can be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing; picks the interface
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
