"""Many clients of an HTTP server in one thread: requests are made beforehand, answers are read as far as need be.

A load generator that shares its cores with the server takes from it what it costs itself. This one costs about as much
as the system calls do: sockets that are never waited for, one ``select`` for all of them, no library in between.
"""

import re
import resource
import selectors
import socket
import time
from collections import Counter
from typing import NamedTuple

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Load(NamedTuple):
    """What clients saw, and what they cost."""

    elapsed: float
    waited: list
    statuses: Counter
    cpu: float


class Client:
    """One connection that is kept, one request at a time.

    Parameters
    ----------
    address : (str, int)
        Of the server.
    requests : iterator of bytes
        What to send, headers included.
    """

    def __init__(self, address, requests):
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.requests = requests
        self.waited, self.statuses = [], Counter()

    def begin(self):
        """Take the next request; returns whether there is one."""
        request = next(self.requests, None)
        if request is None:
            self.socket.close()
            return False
        self.unsent, self.answer, self.started = memoryview(request), b"", time.perf_counter()
        return True

    def send(self):
        """Send what the socket takes; returns whether all is sent."""
        self.unsent = self.unsent[self.socket.send(self.unsent) :]
        return not self.unsent

    def receive(self):
        """Read what has come; returns whether the answer is complete."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("The server closed the connection.")
        self.answer += data
        head, blank_line, body = self.answer.partition(b"\r\n\r\n")
        if not blank_line or len(body) < int(_LENGTH.search(head + b"\r\n")[1]):
            return False
        self.waited.append(time.perf_counter() - self.started)
        self.statuses[int(_STATUS.match(head)[1])] += 1
        return True


def post_request(path, content_type, body):
    """Return a request as it goes over the wire."""
    headers = {"Host": "localhost", "Content-Type": content_type, "Content-Length": len(body)}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def load(address, requests, n_clients, n_requests):
    """Let clients ask at the same time, each again as soon as it has its answer.

    Parameters
    ----------
    address : (str, int)
        Of the server.
    requests : list of bytes
        Taken in turn.
    n_clients, n_requests : int
        How many ask, and how often in all.

    Returns
    -------
    load : Load
        Seconds in all, seconds per request, answers by status, and CPU seconds of this process.
    """
    turns = iter([requests[number % len(requests)] for number in range(n_requests)])
    clients = [Client(address, turns) for _ in range(min(n_clients, n_requests))]
    started, used = time.perf_counter(), _cpu_seconds()
    with selectors.DefaultSelector() as selector:
        for client in clients:
            client.begin()
            selector.register(client.socket, selectors.EVENT_WRITE, client)
        while selector.get_map():
            for key, _ in selector.select():
                _go_on(selector, key)
    elapsed, used = time.perf_counter() - started, _cpu_seconds() - used
    waited = [seconds for client in clients for seconds in client.waited]
    return Load(elapsed, waited, sum((client.statuses for client in clients), Counter()), used)


def _go_on(selector, key):
    client = key.data
    if key.events == selectors.EVENT_WRITE:
        if client.send():
            selector.modify(client.socket, selectors.EVENT_READ, client)
    elif client.receive():
        selector.unregister(client.socket)
        if client.begin():
            selector.register(client.socket, selectors.EVENT_WRITE, client)


def _cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
