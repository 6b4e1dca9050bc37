"""What a picture file says beside its pixels: EXIF and XMP, by default without what tells of a person or a place.

Kept: make, model, software, date, artist, copyright, resolution, and how lens and camera were set.  Artist and
copyright stay because they are written to go with the picture.  Taken out: GPS position, owner, serial numbers, maker
notes, comments and descriptions, host computer, time zone, unique identifiers, XMP, and whatever else is on no list.
The thumbnail, which shows the old picture, and the orientation, which has been applied, are never kept.

Entries are copied byte for byte: Pillow would write every letter beyond ASCII as a question mark.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "EXIF_FOLDER",
    "ORIENTATION",
    "SUBFOLDERS",
    "Entry",
    "Folder",
    "byte_order",
    "encode_folder",
    "exif_block",
    "kept_xmp",
    "read_exif",
]

DESCRIPTION, ORIENTATION, EXIF_FOLDER, GPS_FOLDER = 270, 274, 34665, 34853
SUBFOLDERS = (EXIF_FOLDER, GPS_FOLDER)
NEVER = (ORIENTATION, 40962, 40963, 40965)  # the old picture's: orientation, size, rules of its file format
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}  # of EXIF's types
BIG_SIZES = {16: 8, 17: 8, 18: 8}  # of BigTIFF's
TEXT_TAGS = (271, 272, 305, 306, 315, 33432)  # make, model, software, date, artist, copyright
RESOLUTION_TAGS = (282, 283, 296)
SETTING_TAGS = frozenset(  # of the EXIF folder
    {0x9000, 0xA000}  # versions of the standard
    | {0x829A, 0x829D, 0x8822, 0x8824, 0x8827, *range(0x8830, 0x8836)}  # exposure, aperture, program, sensitivity
    | {0x9003, 0x9004, *range(0x9290, 0x9293)}  # date
    | {*range(0x9201, 0x920B)}  # speed, brightness, distance, metering, light, flash, focal length
    | {0xA001, 0xA500}  # colour space, gamma
    | {0xA20E, 0xA20F, 0xA210, 0xA215, 0xA217, 0xA300, 0xA301}  # sensor and scene
    | {*range(0xA401, 0xA40B), 0xA40C}  # zoom, gain, contrast and the like
    | {0xA432, 0xA433, 0xA434}  # lens
)
# The tags of a TIFF that do not say how the file is laid out: also names, description, host, and the texts of Windows.
TIFF_TAGS = (269, DESCRIPTION, 285, 316, 18246, *range(0x9C9B, 0x9CA0), *TEXT_TAGS)


class Entry(NamedTuple):
    """What stands under a tag: one of EXIF's types, and the bytes of its values."""

    kind: int
    data: bytes


Folder: TypeAlias = Mapping[int, "Entry | Folder"]


def byte_order(block: bytes) -> Literal["<", ">"]:
    """Which of "<" and ">" an EXIF block or a TIFF file is written in.

    Raises:
        ValueError: it begins like neither.
    """
    if block[:2] not in (b"II", b"MM"):
        raise ValueError("This is no EXIF block.")
    return "<" if block[:2] == b"II" else ">"


def read_exif(block: bytes, place: int | None = None, *, big: bool = False) -> dict[int, Entry | Folder]:
    """The first folder of an EXIF block or a TIFF file, with those inside it; entries that are cut off are left out.

    Arguments:
        block: it begins with the byte order.
        place: where the folder begins; by default where the header says.
        big: whether it is a BigTIFF.

    Raises:
        ValueError: there is none.
    """
    order = byte_order(block)
    if len(block) < 8:
        raise ValueError("This EXIF block has no folder.")
    place = struct.unpack_from(order + "I", block, 4)[0] if place is None else place
    folder: dict[int, Entry | Folder] = dict(_read_folder(block, place, order, big))
    for tag in SUBFOLDERS:
        pointer = folder.pop(tag, None)
        if isinstance(pointer, Entry):
            at = int.from_bytes(pointer.data, "little" if order == "<" else "big")
            inner = _read_folder(block, at, order, big)
            if inner:
                folder[tag] = inner
    return folder


def _read_folder(block: bytes, place: int, order: str, big: bool) -> dict[int, Entry]:
    count, head, value = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    head, width = order + head, 20 if big else 12
    start, entries = place + struct.calcsize(order + count), {}
    left = len(block)  # entries that share their bytes must not fill the memory
    number_of_entries = struct.unpack_from(order + count, block, place)[0] if start <= len(block) else 0
    for k in range(number_of_entries):
        if start + (k + 1) * width > len(block):
            break
        tag, kind, number = struct.unpack_from(head, block, start + k * width)
        at, size = start + (k + 1) * width - value, (SIZES | BIG_SIZES).get(kind, 0) * number
        if size > value:
            (at,) = struct.unpack_from(order + ("Q" if big else "I"), block, at)
        if 0 < size <= min(left, len(block) - at):
            left -= size
            entries[tag] = Entry(kind, block[at : at + size])
    return entries


def encode_folder(folder: Folder, order: str, place: int) -> bytes:
    """The bytes of a folder that is to begin at `place`; what it points to, and the folders inside it, follow it."""
    table, rest = struct.pack(order + "H", len(folder)), b""
    after = place + 2 + 12 * len(folder) + 4
    for tag, entry in sorted(folder.items()):
        if isinstance(entry, Entry):
            kind, number, data = entry.kind, len(entry.data) // SIZES[entry.kind], entry.data
        else:
            kind, number, data = 4, 1, encode_folder(entry, order, after + len(rest))
        if isinstance(entry, Entry) and len(data) <= 4:
            value = data.ljust(4, b"\0")
        else:
            value = struct.pack(order + "I", after + len(rest))
            rest += data + b"\0" * (len(data) % 2)
        table += struct.pack(order + "HHI", tag, kind, number) + value
    return table + struct.pack(order + "I", 0) + rest


def exif_block(folder: Folder, order: str, *, of_tiff: bool, everything: bool) -> bytes | None:
    """The EXIF block for a new picture.

    Arguments:
        folder: what was read.
        order: its byte order.
        of_tiff: whether it is the folder of a TIFF file, whose other tags say how the file is laid out.
        everything: also what tells of a person or a place.

    Returns:
        The block, or None if nothing is left.
    """
    kept: dict[int, Entry | Folder] = {}
    for tag, entry in folder.items():
        if isinstance(entry, Entry):
            wanted = tag in (TEXT_TAGS if of_tiff else (*TEXT_TAGS, *RESOLUTION_TAGS))
            if everything:
                wanted = tag in TIFF_TAGS if of_tiff else tag not in NEVER
            if entry.kind in SIZES and wanted and not (tag == DESCRIPTION and b'"software": "invsolve' in entry.data):
                kept[tag] = entry
        elif everything or tag == EXIF_FOLDER:
            inner = {key: value for key, value in entry.items() if key in SETTING_TAGS or everything}
            inner = {
                key: value
                for key, value in inner.items()
                if key not in NEVER and isinstance(value, Entry) and value.kind in SIZES
            }
            kept |= {tag: inner} if inner else {}
    if not kept:
        return None
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + encode_folder(kept, order, 8)


def kept_xmp(packet: object, *, everything: bool) -> bytes | None:
    """An XMP packet, made to say that the picture is upright; None unless everything is kept."""
    if not everything or not isinstance(packet, bytes | str) or not packet:
        return None
    data = packet.encode() if isinstance(packet, str) else packet
    return re.sub(rb'(tiff:Orientation(?:\s*=\s*["\']|>))\d', rb"\g<1>1", data.rstrip(b"\0"))
