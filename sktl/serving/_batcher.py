"""Requests wait for each other a few milliseconds, and are computed together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

N_THREADS = 2  # while one batch is in the network, the next is decoded
SECONDS_TO_WAIT = 0.003
SECONDS_TO_WAIT_WHILE_BUSY = 0.25  # nothing is lost by it: the cores are at work


class Busy(Exception):  # noqa: N818 -- an answer to the client, not an error of ours
    """More images are waiting than may."""


class Job(NamedTuple):
    """The images of a request, and where its answer goes."""

    images: list[bytes]
    answer: Future
    arrived: float


class Batcher:
    """Collect the images of several requests, and compute them in one go, in threads of its own.

    Parameters
    ----------
    compute : callable
        Takes a list of lists of images, returns one answer for each.
    max_queued_images : int
        Images that may wait.
    pass_size : int, default=1
        Images that fill a pass through the network; a pass with fewer costs the same.
    max_images : int, default=32
        Images to compute in one go.
    on_batch : callable, default=None
        Told the number of images of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[list[bytes]]], list[Any]],
        max_queued_images: int,
        *,
        pass_size: int = 1,
        max_images: int = 32,
        on_batch: Callable[[int], None] | None = None,
    ):
        self._compute = compute
        self._max_queued_images = max_queued_images
        self._pass_size, self._max_images = pass_size, max(pass_size, max_images)
        self._on_batch = on_batch or (lambda n_images: None)
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._n_busy = 0
        self._threads = [threading.Thread(target=self._work, name=f"sktl-batch-{n}") for n in range(N_THREADS)]
        for thread in self._threads:
            thread.start()

    @property
    def n_queued(self) -> int:
        """Images that wait."""
        return sum(len(job.images) for job in list(self._jobs))

    def submit(self, images: list[bytes]) -> Future:
        """Hand in the images of a request.

        Parameters
        ----------
        images : list of bytes
            At least one.

        Returns
        -------
        answer : Future
            Of what ``compute`` returns for them. Cancelled before its turn, it costs nothing.

        Raises
        ------
        Busy
            If too many images are waiting.
        """
        answer: Future = Future()
        with self._changed:
            if self._closed or self.n_queued + len(images) > self._max_queued_images:
                raise Busy
            self._jobs.append(Job(images, answer, time.monotonic()))
            self._changed.notify_all()
        return answer

    def close(self) -> None:
        """Compute what is waiting, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (jobs := self._take()) is not None:
            try:
                jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
                if jobs:
                    self._on_batch(sum(len(job.images) for job in jobs))
                    self._answer(jobs)
            finally:
                with self._changed:
                    self._n_busy -= 1
                    self._changed.notify_all()

    def _take(self) -> list[Job] | None:
        """Wait for jobs, and a little longer for more to go with them; None at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return None
                patience = self._jobs[0].arrived + self._seconds_to_wait() - time.monotonic()
                if patience <= 0:
                    self._n_busy += 1
                    return self._pop()
                self._changed.wait(patience)

    def _seconds_to_wait(self) -> float:
        """Return how long the first job may wait for others."""
        if self._closed or self.n_queued >= self._pass_size:
            return 0.0
        return SECONDS_TO_WAIT_WHILE_BUSY if self._n_busy else SECONDS_TO_WAIT

    def _pop(self) -> list[Job]:
        """Take whole jobs in the order of their coming, to fill whole passes; the first, however large it is."""
        n_passes = max(1, min(self.n_queued, self._max_images) // self._pass_size)
        jobs = [self._jobs.popleft()]
        n_images = len(jobs[0].images)
        while self._jobs and n_images + len(self._jobs[0].images) <= n_passes * self._pass_size:
            n_images += len(self._jobs[0].images)
            jobs.append(self._jobs.popleft())
        return jobs

    def _answer(self, jobs: list[Job]) -> None:
        try:
            answers = self._compute([job.images for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
                return
            for job in jobs:  # whichever of them it was, the others shall not suffer
                self._answer([job])
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)
