"""Why a request is refused, as one JSON object."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse


class Refusal(Exception):  # noqa: N818 -- an answer to the client, not an error of ours
    """A request that gets no predictions.

    Parameters
    ----------
    status : int
        Of HTTP.
    detail : str
        What is wrong, and what to do about it.
    rows : sequence of (int, str, str), default=()
        Images that cannot be used: index, name, reason.
    """

    def __init__(self, status: int, detail: str, rows=()):
        super().__init__(detail)
        self.status, self.detail, self.rows = status, detail, list(rows)

    def response(self) -> JSONResponse:
        """Return what the client sees."""
        body: dict[str, Any] = {"detail": self.detail}
        if self.rows:
            body["rows"] = [{"index": index, "name": name, "reason": reason} for index, name, reason in self.rows]
        headers: Mapping[str, str] = {"Retry-After": "1"} if self.status == 503 else {}
        return JSONResponse(body, self.status, headers=headers)
