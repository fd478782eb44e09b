"""The file: a zip of plain, uncompressed members in which every byte is accounted for.

Nothing in it is compressed, so that no member can be larger than the file; members lie side by side, so that none can
hide another; and the file ends with a seal, the SHA-256 of everything that is not the content of a member, and of the
manifest, which holds the SHA-256 of all other members.
"""

import hashlib
import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from sktl._writing import replacing
from sktl.exceptions import DamagedFileError, FormatVersionError, UnsafeFileError

FORMAT = "sktl"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"

Content = bytes | bytearray | memoryview

_SEAL = re.compile(rb"sktl-sha256:([0-9a-f]{64})")
_NO_SEAL = b"sktl-sha256:" + b"0" * 64
_HEX = 64
_MEMBER = re.compile(
    r"manifest\.json|estimator/(?:schema\.json|[0-9a-f-]{1,40}\.(?:npy|npz|bin))|weights/\d{1,6}\.safetensors"
)
_MAX_MEMBERS = 100_000
MAX_JSON = 2**26
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


class Extent(NamedTuple):
    """Where the content of a member lies in the file."""

    start: int
    size: int


def write_container(path: str | os.PathLike, members: Mapping[str, Content], manifest: Mapping[str, Any]) -> None:
    """Write a file whole, or leave what is there as it is.

    Parameters
    ----------
    path : path-like
        The file; it takes its name only when it is complete and on the disk.
    members : dict of str to bytes
        Contents by name.
    manifest : dict
        JSON-able; format, version, sizes and hashes are added.
    """
    hashes = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in members.items()}
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest, "members": hashes}
    text = json.dumps(head, indent=1).encode()
    with replacing(path) as unfinished, open(unfinished, "x+b") as file:
        _write_members(file, {MANIFEST: text, **members})
        extents, _ = _read_layout(file)
        file.seek(-_HEX, os.SEEK_END)
        file.write(_seal(file, extents).encode())


def _write_members(file: BinaryIO, members: Mapping[str, Content]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
        archive.comment = _NO_SEAL


class Container:
    """A file opened for reading, after its form, its seal and the hash of its manifest were checked.

    Parameters
    ----------
    path : path-like
        The file.

    Attributes
    ----------
    manifest : dict
        What the file says about itself.

    Raises
    ------
    DamagedFileError, UnsafeFileError, FormatVersionError
        If it cannot be used.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        if os.path.exists(path) and not os.path.isfile(path):
            raise DamagedFileError(f"The file {self.path!r} cannot be loaded: it is a folder or device, not a file.")
        self._file = open(path, "rb")  # noqa: SIM115 -- closed by __exit__, and on errors
        try:
            with _told_of(self.path):
                self._extents, seal = _read_layout(self._file)
                if _seal(self._file, self._extents) != seal:
                    raise DamagedFileError("it is not as it was written: its SHA-256 does not match.")
                self.manifest = self._read_manifest()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def names(self, folder: str) -> list[str]:
        """Return the names of the members in a folder, without the folder."""
        return [name.removeprefix(f"{folder}/") for name in self._extents if name.startswith(f"{folder}/")]

    def read(self, name: str) -> bytes:
        """Read a member and check its hash."""
        with _told_of(self.path):
            if name not in self._extents:
                raise DamagedFileError(f"its member {name!r} is missing.")
            data = _read_at(self._file, self._extents[name])
            if hashlib.sha256(data).hexdigest() != self.manifest["members"][name]["sha256"]:
                raise DamagedFileError(f"the SHA-256 of its member {name!r} is not the one that was written down.")
            return data

    def _read_manifest(self) -> dict[str, Any]:
        manifest = parse_json(_read_at(self._file, self._extents[MANIFEST]), MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DamagedFileError("its manifest is none of sktl's.")
        version = manifest.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise DamagedFileError(f"its format version is {version!r}, which is no version of sktl's.")
        if version > FORMAT_VERSION:
            raise FormatVersionError(
                f"it has format version {version}, written by sktl {_writer(manifest)}; this sktl reads versions up to "
                f"{FORMAT_VERSION}. Install a newer sktl: pip install -U sktl"
            )
        self._check_members(manifest)
        return manifest

    def _check_members(self, manifest: dict[str, Any]) -> None:
        members = manifest.get("members")
        sizes = {name: extent.size for name, extent in self._extents.items() if name != MANIFEST}
        if not isinstance(members, dict) or not all(isinstance(entry, dict) for entry in members.values()):
            raise DamagedFileError("its manifest has no list of members.")
        if {name: entry.get("size") for name, entry in members.items()} != sizes:
            raise DamagedFileError("its members are not those that its manifest lists.")
        if not all(isinstance(entry.get("sha256"), str) for entry in members.values()):
            raise DamagedFileError("its manifest has no hash for some of its members.")


def parse_json(data: bytes, name: str) -> Any:
    """Read JSON of a bounded size and depth.

    Parameters
    ----------
    data : bytes
        Text in UTF-8.
    name : str
        Of the member, for messages.
    """
    if len(data) > MAX_JSON:
        raise UnsafeFileError(f"its member {name!r} has {len(data):,} bytes; at most {MAX_JSON:,} are read.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"its member {name!r} is no JSON: {error}") from error


def _writer(manifest: dict[str, Any]) -> str:
    versions = manifest.get("versions")
    return str(versions.get("sktl", "?"))[:40] if isinstance(versions, dict) else "?"


@contextmanager
def _told_of(path: str) -> Iterator[None]:
    """Let the errors of a block begin with the file's name."""
    try:
        yield
    except (DamagedFileError, UnsafeFileError, FormatVersionError) as error:
        message = str(error)
        start = f"The file {path!r} cannot be loaded: "
        raise (error if message.startswith(start) else type(error)(f"{start}{message}")) from error.__cause__


def _read_layout(file: BinaryIO) -> tuple[dict[str, Extent], str]:
    """Return where the members lie, and the seal; refuse whatever is not as this module writes it."""
    size = file.seek(0, os.SEEK_END)
    tail = len(_NO_SEAL)
    file.seek(max(0, size - tail))
    seal = _SEAL.fullmatch(file.read())
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise DamagedFileError("it is none of the files that sktl.save writes.")
    if seal is None:
        raise DamagedFileError("its end is missing (it is truncated), or another program wrote it.")
    try:
        with zipfile.ZipFile(file) as archive:
            if len(archive.comment) != tail:
                raise DamagedFileError("its end is not where it should be.")
            infos = archive.infolist()
            directory = archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, OverflowError) as error:
        raise DamagedFileError(f"its directory of members cannot be read: {error}") from error
    if len(infos) > _MAX_MEMBERS:
        raise UnsafeFileError(f"it has {len(infos):,} members; at most {_MAX_MEMBERS:,} are read.")
    extents: dict[str, Extent] = {}
    place = 0
    for info in infos:
        _check_member(info, extents)
        extent = _extent(file, info, place)
        extents[info.filename] = extent
        place = extent.start + extent.size
    if place != directory:
        raise UnsafeFileError("there is something between its members.")
    if MANIFEST not in extents:
        raise DamagedFileError("it has no manifest.")
    if extents[MANIFEST].size > MAX_JSON:
        raise UnsafeFileError(f"its manifest has {extents[MANIFEST].size:,} bytes; at most {MAX_JSON:,} are read.")
    return extents, seal.group(1).decode()


def _check_member(info: zipfile.ZipInfo, seen: Mapping[str, Extent]) -> None:
    name = info.orig_filename
    if not _MEMBER.fullmatch(name) or name != info.filename:
        raise UnsafeFileError(f"it has a member {name[:100]!r}, which no file of sktl has.")
    if name in seen:
        raise UnsafeFileError(f"it has two members of the name {name!r}.")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise UnsafeFileError(f"its member {name!r} is compressed; in files of sktl none is.")
    if info.flag_bits & ~0x800 or (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
        raise UnsafeFileError(f"its member {name!r} is no plain file (encrypted, streamed, or a link).")


def _extent(file: BinaryIO, info: zipfile.ZipInfo, place: int) -> Extent:
    """Return where a member's content lies, which must be next to the member before it."""
    if info.header_offset != place:
        raise UnsafeFileError(f"its member {info.filename!r} is not where it should be.")
    header = _read_at(file, Extent(place, _LOCAL_HEADER.size))
    magic, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    name = _read_at(file, Extent(place + len(header), name_length))
    if magic != b"PK\x03\x04" or name != info.filename.encode():
        raise UnsafeFileError(f"its member {info.filename!r} has another name inside.")
    return Extent(place + len(header) + name_length + extra_length, info.file_size)


def _read_at(file: BinaryIO, extent: Extent) -> bytes:
    file.seek(extent.start)
    data = file.read(extent.size)
    if len(data) != extent.size:
        raise DamagedFileError("it is truncated.")
    return data


def _seal(file: BinaryIO, extents: Mapping[str, Extent]) -> str:
    """Hash everything but the seal itself and the contents that the manifest has hashes of."""
    digest = hashlib.sha256()
    size = file.seek(0, os.SEEK_END)
    place = 0
    for name, extent in extents.items():
        if name != MANIFEST:
            digest.update(_read_at(file, Extent(place, extent.start - place)))
            place = extent.start + extent.size
    digest.update(_read_at(file, Extent(place, size - _HEX - place)))
    return digest.hexdigest()


def zip_of(members: Mapping[str, Content]) -> bytes:
    """Pack members into a zip in memory, as skops wants to read it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def members_of(archive_bytes: bytes) -> dict[str, bytes]:
    """Unpack a zip that skops wrote."""
    with zipfile.ZipFile(io.BytesIO(archive_bytes)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
