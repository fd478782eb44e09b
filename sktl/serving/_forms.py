"""Files out of a form, in memory: nothing is written to a disk, which may be full or read-only."""

from dataclasses import dataclass, field
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header


class Upload(NamedTuple):
    """One file of a form.

    Attributes
    ----------
    name : str
        As the client calls it.
    data : bytes
        Its content.
    """

    name: str
    data: bytes


class FormError(Exception):
    """A form that cannot be read, or holds something else than files; the message says what is wrong."""


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    name: str = ""


class Form:
    """Collects the files of a ``multipart/form-data`` body as its pieces come.

    Parameters
    ----------
    content_type : str
        Header of the request; names the boundary.

    Attributes
    ----------
    files : list of Upload
        Those that are complete.

    Raises
    ------
    FormError
        If the header is of another kind.
    """

    def __init__(self, content_type: str):
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            raise FormError(f"Send the images as files of a form (multipart/form-data), got {content_type!r}.")
        if not options.get(b"boundary"):
            raise FormError("The header of the form, Content-Type, names no boundary.")
        self.files: list[Upload] = []
        self.n_begun = 0
        self._part = _Part()
        self._header_name, self._header_value = bytearray(), bytearray()
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": lambda data, start, end: self._part.data.extend(memoryview(data)[start:end]),
                "on_part_end": lambda: self.files.append(Upload(self._part.name, bytes(self._part.data))),
            },
        )

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body.

        Parameters
        ----------
        data : bytes
            Of any length.

        Raises
        ------
        FormError
            If it is damaged, or a field is no file.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise FormError(f"The form cannot be read: {error}") from error

    def _begin(self) -> None:
        self._part = _Part()
        self.n_begun += 1

    def _end_header(self) -> None:
        self._part.headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition", b""))
        if b"filename" not in options:
            field_name = options.get(b"name", b"").decode(errors="replace")
            raise FormError(f"The field {field_name!r} of the form holds no file: send every image as a file.")
        self._part.name = options[b"filename"].decode(errors="replace") or "image"
