"""What a picture file says of its own making, and whether it is still as it was written.

The provenance is JSON, in the text chunk `invsolve` of a PNG and in the description of a TIFF; no file is trusted
by its name.  It holds the SHA-256 of the file with zeros in that hash's own place.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tifffile

from .tiff import is_tiff, tiff_description

__all__ = [
    "figure_metadata",
    "has_changed",
    "is_damaged",
    "is_edited",
    "png_chunk",
    "png_text",
    "provenance",
    "provenance_of",
    "sealed",
]

PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
KEYWORD = "invsolve"
SEAL, OPEN = "sha256", "0" * 64


def provenance(tool: str, content: str, **more: Any) -> dict[str, Any]:
    """How a picture was made, as it stands in the file.

    Arguments:
        tool: what wrote it, such as "restore".
        content: what it shows, such as "sample".
        more: further entries.
    """
    return {"software": f"invsolve {version('invsolve')}", "tool": tool, "content": content, **more}


def figure_metadata(tool: str) -> dict[str, str]:
    """The provenance for matplotlib's `savefig(..., metadata=)` of a PNG."""
    return {KEYWORD: json.dumps(provenance(tool, "figure"), sort_keys=True)}


def sealed(provenance: Mapping[str, Any], encode: Callable[[str], bytes]) -> bytes:
    """A picture file with its provenance, in which the SHA-256 of the file stands.

    Arguments:
        provenance: see `provenance`.
        encode: the file with this text as its provenance.
    """
    data = encode(_text(provenance, OPEN))
    return _with_seal(data, provenance, OPEN, hashlib.sha256(data).hexdigest())


def provenance_of(path: Path) -> dict[str, Any]:
    """What `sealed` wrote about the making of a picture file; empty if invsolve did not write this one.

    Other programs describe their pictures in JSON with a "software", too.
    """
    return {key: value for key, value in _read(path).items() if key != SEAL}


def has_changed(path: Path) -> bool:
    """Whether a file with a provenance is not as it was written, be it in its pixels or in what it tells of itself."""
    made = _read(path)
    seal = made.pop(SEAL, None)
    if not isinstance(seal, str):  # of a version that wrote none
        return False
    data = path.read_bytes()
    data += b"\0" * (len(data) % 2 if is_tiff(data) else 0)  # the padding at the end of a TIFF tells nothing
    return hashlib.sha256(_with_seal(data, made, seal, OPEN)).hexdigest() != seal


def is_edited(path: Path) -> bool:
    """Whether a file with a provenance was changed by somebody, and is no mere rest of what was written."""
    return has_changed(path) and not is_damaged(path)


def is_damaged(path: Path) -> bool:
    """Whether a file begins like a PNG or a TIFF and is cut off or has wrong checksums, or is empty."""
    data = path.read_bytes()
    if is_tiff(data):
        return not _is_whole_tiff(path, len(data))
    return not data or (data[:8] == PNG_BEGIN[: len(data)] and not _has_whole_chunks(data))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file: length, kind, body and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_text(keyword: str, content: bytes) -> bytes:
    """A text chunk of a PNG file, not compressed and of no language."""
    return png_chunk(b"iTXt", keyword.encode() + b"\0\0\0\0\0" + content)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            tiff = is_tiff(file.read(4))
        made = json.loads(tiff_description(path) if tiff else _png_text_of(path))
    except Exception:  # noqa: BLE001  a file of any kind may lie there
        return {}
    ours = isinstance(made, dict) and "tool" in made and str(made.get("software")).startswith("invsolve ")
    return made if ours else {}


def _png_text_of(path: Path) -> str:
    """The text under our keyword, of whatever kind; Pillow refuses large pictures even if only their texts are read."""
    with path.open("rb") as file:
        if file.read(len(PNG_BEGIN)) != PNG_BEGIN:
            raise ValueError("it is no PNG")
        while True:
            size, kind = struct.unpack(">I4s", file.read(8))
            if kind in (b"IDAT", b"IEND"):
                raise ValueError("it has no such text")
            body = file.read(size) if kind in (b"iTXt", b"tEXt", b"zTXt") else b""
            keyword, _, content = body.partition(b"\0")
            if keyword == KEYWORD.encode():
                break
            file.seek(size - len(body) + 4, 1)
    if kind == b"tEXt":
        return content.decode("latin-1")
    if kind == b"zTXt":
        return zlib.decompress(content[1:]).decode("latin-1")
    packed, content = content[0], content[2:].split(b"\0", 2)[2]
    return (zlib.decompress(content) if packed else content).decode()


def _text(made: Mapping[str, Any], seal: str) -> str:
    return json.dumps({**made, SEAL: seal}, sort_keys=True)


def _is_whole_tiff(path: Path, size: int) -> bool:
    """Whether a TIFF file of so many bytes can be decoded, and its tags and pixels end within it."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            page.asarray()
            ends = [tag.valueoffset + tag.valuebytecount for tag in page.tags]
            ends += [at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
            ends += [page.offset + 2 + 12 * len(page.tags) + 4]
            return max(ends) <= size
    except Exception:  # noqa: BLE001  decoders raise many types
        return False


def _has_whole_chunks(data: bytes) -> bool:
    """Whether a PNG file goes on to its last chunk, each with its checksum."""
    at, kind = len(PNG_BEGIN), b""
    while kind != b"IEND":
        if len(data) < at + 12:
            return False
        (size,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 8 + size
        if data[end : end + 4] != struct.pack(">I", zlib.crc32(data[at + 4 : end])):
            return False
        at = end + 4
    return True


def _with_seal(data: bytes, made: Mapping[str, Any], old: str, new: str) -> bytes:
    """The file with another hash in its provenance, both of the same length."""
    before, after = (_text(made, seal).encode() for seal in (old, new))
    if data.startswith(PNG_BEGIN):
        before, after = png_text(KEYWORD, before), png_text(KEYWORD, after)
    return data.replace(before, after)  # in a TIFF with EXIF it stands twice
