"""Processes that watch each other, here as threads connected to one another."""

import contextlib
import queue
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from iddpm_jax import peers as peers_module
from iddpm_jax.peers import Peers


class Ends(queue.Queue):
    """Takes the lines instead of ending a process."""

    def line(self):
        return self.get(timeout=5)


@pytest.fixture(name="group")
def connect_three():
    """Three connected Peers, and the lines that each was told."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    ends = [Ends() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        peers = pool.map(
            lambda i: Peers(listener if i == 0 else None, address, i, 3, ends[i].put), range(3)
        )
        peers = list(peers)
    yield [peer.__enter__() for peer in peers], ends
    for peer in peers:
        peer.__exit__(ConnectionError)


def die(peer):
    """What the system does to the connections of a process that ends."""
    for connection in peer._sockets.values():
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def test_all_others_are_told_which_process_is_gone(group):
    peers, ends = group
    die(peers[2])
    for end in ends[:2]:
        assert end.line().startswith("process 2 of this run has ended or cannot be reached; start")


def test_loss_of_the_first_process_is_noticed_by_all(group):
    peers, ends = group
    peers[0].__exit__(ConnectionError)
    for end in ends[1:]:
        assert end.line().startswith("process 0 of this run has ended")


def test_processes_that_say_goodbye_are_not_missed(group):
    peers, ends = group
    with ThreadPoolExecutor(3) as pool:  # leaving waits for the others
        list(pool.map(lambda peer: peer.__exit__(None), peers, timeout=10))
    assert all(end.empty() for end in ends)


def test_process_that_fails_says_no_goodbye(group):
    peers, ends = group
    peers[1].__exit__(ValueError)
    assert ends[1].empty()
    assert ends[0].line().startswith("process 1 ")
    assert ends[2].line().startswith("process 1 ")


def test_process_that_cannot_connect_leaves_the_others_watching(monkeypatch):
    monkeypatch.setattr(peers_module, "CONNECT_SECONDS", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    ends = [Ends() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        made = list(
            pool.map(lambda i: Peers(None if i else listener, address, i, 3, ends[i].put), range(2))
        )
    first, second = (peer.__enter__() for peer in made)
    with pytest.raises(OSError):
        Peers(None, address, 2, 3)  # comes too late
    second.__exit__(ConnectionError)
    assert ends[0].line().startswith("process 1 ")
    first.__exit__(ConnectionError)
