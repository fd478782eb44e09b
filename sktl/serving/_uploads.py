"""The body of a request, read within bounds of length, number and time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from sktl.serving._errors import Refusal
from sktl.serving._forms import Form, FormError, Picture, Upload, open_body
from sktl.serving._limits import Limits


class Uploads:
    """Reads the files of forms, and keeps account of the memory they take.

    Parameters
    ----------
    limits : Limits
        What is allowed.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.bytes_held = 0

    @contextmanager
    def account(self) -> Iterator["Account"]:
        """Count what a request holds until it is answered."""
        account = Account(self)
        try:
            yield account
        finally:
            self.bytes_held -= account.n_bytes


class Account:
    """What one request holds.

    Parameters
    ----------
    uploads : Uploads
        Where it is counted.
    """

    def __init__(self, uploads: Uploads):
        self.uploads, self.limits = uploads, uploads.limits
        self.n_bytes = 0

    async def read(self, request: Request) -> list[Upload]:
        """Read the images of a request.

        Parameters
        ----------
        request : Request
            With a body of ``multipart/form-data``, or an image as it is.

        Returns
        -------
        uploads : list of Upload
            At least one.

        Raises
        ------
        Refusal
            If it is something else, too large, too slow or damaged.
        """
        try:
            body = open_body(request.headers.get("content-type", ""))
        except FormError as error:
            raise Refusal(415, str(error)) from error
        try:
            async with asyncio.timeout(self.limits.seconds_to_upload):
                await self._fill(body, request)
        except TimeoutError as error:
            seconds = self.limits.seconds_to_upload
            raise Refusal(408, f"The upload took longer than {seconds:g} seconds.") from error
        except ClientDisconnect as error:
            raise Refusal(400, "The client went away before the upload was complete.") from error
        return self._files_of(body)

    def _files_of(self, body: Form | Picture) -> list[Upload]:
        if body.count() > self.limits.max_images:
            raise Refusal(413, f"A request may hold {self.limits.max_images} images at most.")
        try:
            files = body.files()
        except FormError as error:
            raise Refusal(400, str(error)) from error
        if not files:
            raise Refusal(422, "The form holds no file: send at least one image.")
        return files

    async def _fill(self, body: Form | Picture, request: Request) -> None:
        """Take a body; of one that is refused read the rest, for the answer reaches only a client that has sent all."""
        refusal = None
        async for chunk in request.stream():
            if refusal is None:
                refusal = self._refusal_of(body, chunk)
        if refusal is not None:
            raise refusal

    def _refusal_of(self, body: Form | Picture, chunk: bytes) -> Refusal | None:
        """Take a piece of the body, or say why not."""
        if self.n_bytes + len(chunk) > self.limits.max_bytes:
            return Refusal(413, f"A request may have {self.limits.max_bytes:,} bytes at most.")
        if self.uploads.bytes_held + len(chunk) > self.limits.max_bytes_at_once:
            return Refusal(503, "The server holds as many images as it can; try again in a moment.")
        self.n_bytes += len(chunk)
        self.uploads.bytes_held += len(chunk)
        body.feed(chunk)
        return None
