"""Images are decoded as they come and go through the network together; no core rests as long as there is work."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from sktl.embedding.passes import NOT_FINITE
from sktl.inputs import RowError
from sktl.serving._model import BadImages, ServedModel

SECONDS_TO_WAIT = 0.003
SECONDS_TO_WAIT_WHILE_BUSY = 0.25  # nothing is lost by it: the cores are at work


class Busy(Exception):  # noqa: N818 -- an answer to the client, not an error of ours
    """More images are waiting than may."""


class Job:
    """The images of a request, and where its answer goes.

    Parameters
    ----------
    images : list of bytes
        Contents of files.
    """

    def __init__(self, images: list[bytes]):
        self.images, self.arrived = images, time.monotonic()
        self.answer: Future = Future()
        self.embeddings: list[np.ndarray | None] = [None] * len(images)
        self.reasons: dict[int, str] = {}
        self.n_begun, self.n_left = 0, len(images)


class Prepared(NamedTuple):
    """An image that waits for its pass through the network."""

    job: Job
    place: int
    pixels: np.ndarray


class Batcher:
    """Turns images into answers, in threads of its own.

    Whichever of them is free runs a pass through the network if there are images to fill one, else decodes the next
    image. Requests are begun in their order; the images of a large one go through several passes.

    Parameters
    ----------
    model : ServedModel
        Decodes, runs its network, and answers.
    max_queued_images : int
        Images that may wait.
    on_pass : callable, default=None
        Told the number of images of each pass.
    """

    def __init__(self, model: ServedModel, max_queued_images: int, on_pass: Callable[[int], None] | None = None):
        self._model = model
        self._max_queued_images = max_queued_images
        self._on_pass = on_pass or (lambda n_images: None)
        self._jobs: deque[Job] = deque()  # with images that nobody decodes yet
        self._ready: deque[Prepared] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._n_at_work = self._n_passes = 0
        self._threads = [threading.Thread(target=self._work, name=f"sktl-{n}") for n in range(model.n_threads)]
        for thread in self._threads:
            thread.start()

    @property
    def n_queued(self) -> int:
        """Images that wait."""
        return sum(len(job.images) - job.n_begun for job in list(self._jobs)) + len(self._ready)

    def submit(self, images: list[bytes]) -> Future:
        """Hand in the images of a request.

        Parameters
        ----------
        images : list of bytes
            At least one.

        Returns
        -------
        answer : Future of Answer or BadImages
            What the model says. Cancelled before its turn, it costs nothing.

        Raises
        ------
        Busy
            If too many images are waiting.
        """
        job = Job(images)
        with self._changed:
            if self._closed or self.n_queued + len(images) > self._max_queued_images:
                raise Busy
            self._jobs.append(job)
            self._changed.notify_all()
        return job.answer

    def close(self) -> None:
        """Answer what is waiting, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # What to do next; all of this under the lock ---------------------------------------------------------------------

    def _take(self) -> tuple | None:
        """Wait for something to do: a method and its arguments; None at the end."""
        while True:
            seconds = self._seconds_to_pass()
            if seconds == 0:
                n_images = min(len(self._ready), self._model.pass_size)
                return self._run, [self._ready.popleft() for _ in range(n_images)]
            job = self._next_job()
            if job is not None:
                return self._begin(job)
            if self._closed and not self._ready:
                return None
            # Asked again: the jobs that kept a pass waiting may just have been dropped.
            self._changed.wait(self._seconds_to_pass())

    def _seconds_to_pass(self) -> float | None:
        """Return how long the next pass may still wait for more images; None if there is none to be run here."""
        if not self._ready or self._n_passes == self._model.n_lanes:
            return None
        if len(self._ready) >= self._model.pass_size:
            return 0
        if self._jobs:
            return None
        if self._closed:
            return 0
        patience = SECONDS_TO_WAIT_WHILE_BUSY if self._n_at_work else SECONDS_TO_WAIT
        return max(0, self._ready[0].job.arrived + patience - time.monotonic())

    def _next_job(self) -> Job | None:
        """Return the first job with an image to be decoded; those that were given up are dropped."""
        while self._jobs:
            job = self._jobs[0]
            if not job.answer.done() and (job.n_begun or job.answer.set_running_or_notify_cancel()):
                return job
            self._jobs.popleft()
        return None

    def _begin(self, job: Job) -> tuple:
        """Return what is to be done for the next image of a job, or for all of it."""
        place = job.n_begun
        job.n_begun = place + 1 if self._model.shares_passes else len(job.images)
        if job.n_begun == len(job.images):
            self._jobs.popleft()
        return (self._prepare, job, place) if self._model.shares_passes else (self._answer_whole, job)

    # The work -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._model.limit_thread()
        while True:
            with self._changed:
                work = self._take()
                if work is None:
                    return
                do, *arguments = work
                self._n_at_work += 1
                self._n_passes += do == self._run
            try:
                do(*arguments)
            finally:
                with self._changed:
                    self._n_at_work -= 1
                    self._n_passes -= do == self._run
                    self._changed.notify_all()

    def _prepare(self, job: Job, place: int) -> None:
        try:
            pixels = self._model.prepare(job.images[place])
        except RowError as error:
            job.reasons[place] = str(error)
            self._count_down(job)
        except Exception as error:
            self._fail(job, error)
        else:
            self._ready.append(Prepared(job, place, pixels))

    def _run(self, prepared: list[Prepared]) -> None:
        """Run a pass; if it fails, one for each image, so that others do not suffer."""
        try:
            self._on_pass(len(prepared))
            embeddings = self._model.run([each.pixels for each in prepared])
        except Exception as error:
            if len(prepared) == 1:
                self._fail(prepared[0].job, error)
                return
            for each in prepared:
                self._run([each])
            return
        for each, embedding in zip(prepared, embeddings, strict=True):
            if np.isfinite(embedding).all():
                each.job.embeddings[each.place] = embedding
            else:
                each.job.reasons[each.place] = NOT_FINITE
            self._count_down(each.job)

    def _count_down(self, job: Job) -> None:
        """Answer a job when its last image is done."""
        with self._changed:
            job.n_left -= 1
            if job.n_left:
                return
        try:
            answer = BadImages(job.reasons) if job.reasons else self._model.answer(np.stack(job.embeddings))
        except Exception as error:
            self._fail(job, error)
        else:
            job.answer.set_result(answer)

    def _fail(self, job: Job, error: Exception) -> None:
        """Answer with an error; of several the first."""
        with self._changed:
            if not job.answer.done():
                job.answer.set_exception(error)

    def _answer_whole(self, job: Job) -> None:
        try:
            job.answer.set_result(self._model.answer_whole(job.images))
        except Exception as error:
            self._fail(job, error)
