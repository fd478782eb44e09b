"""How much a client may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what one request, and all requests together, may take.

    Parameters
    ----------
    max_bytes : int, default=32 MiB
        Length of the body of a request.
    max_images : int, default=64
        Images in a request.
    max_pixels : int, default=50_000_000
        Pixels of an image; a larger one is refused before it is decoded.
    seconds_to_upload : float, default=30
        Time in which the whole body has to arrive.
    seconds_to_answer : float, default=60
        Time from then on in which the predictions have to be ready.
    max_queued_images : int, default=1024
        Images that may wait for their turn.
    max_bytes_at_once : int, default=512 MiB
        Total length of the bodies of all requests in progress.
    """

    max_bytes: int = 32 * 2**20
    max_images: int = 64
    max_pixels: int = 50_000_000
    seconds_to_upload: float = 30.0
    seconds_to_answer: float = 60.0
    max_queued_images: int = 1024
    max_bytes_at_once: int = 512 * 2**20
