"""How much a client may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what one request, and all of them together, may take.

    Attributes
    ----------
    max_bytes : int
        Length of a request's body.
    max_images : int
        Images in a request.
    max_pixels : int
        Pixels of an image; a larger one is refused before it is decoded.
    seconds_to_upload : float
        Until the whole body must have come.
    seconds_to_answer : float
        Until the predictions must be there.
    max_queued_images : int
        Images that wait for their turn.
    max_bytes_at_once : int
        Of the bodies of all requests that are under way.
    """

    max_bytes: int = 32 * 2**20
    max_images: int = 64
    max_pixels: int = 50_000_000
    seconds_to_upload: float = 30.0
    seconds_to_answer: float = 60.0
    max_queued_images: int = 1024
    max_bytes_at_once: int = 512 * 2**20
