"""Collect the training pictures of the bundled prior `natural` from packages and a folder of photographs.

    python scripts/make_training_set.py --out training-set --photos FOLDER

The packages are downloaded with apt-get and npm and unpacked into the output folder; nothing is installed.  FOLDER
holds photographs and a sources.json that lists them: file, repository, path, licence.  The result is `photos/`
(photographs, stored as they are), `validation/` (those that are never trained on), `stamps/` (cut-outs with alpha) and
`sources.json`, which lists every picture with where it comes from.  Renderings, drawings, posters and second copies
are left out by the lists below, which were made by looking at every picture.  No picture of scikit-image or
scikit-learn is among them: the quality of the prior is measured on those.

A photograph belongs to the validation set by the hash of its bytes, so that it stays there when the set grows.  Only
the sources that were new in the second training take part: the first weights have seen all of the others.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from endings import run
from PIL import Image

WALLPAPERS = {
    "lomiri-wallpapers-16.04": None,  # None: every picture of the package
    "lomiri-wallpapers-20.04": ("Kleiber_by_Lukas_Baubkus.jpg",),
    "mate-backgrounds": (
        *("Aqua.jpg", "Blinds.jpg", "Dune.jpg", "FreshFlower.jpg", "Garden.jpg", "GreenMeadow.jpg"),
        *("LadyBird.jpg", "RainDrops.jpg", "Storm.jpg", "TwoWings.jpg", "Wood.jpg", "YellowFlower.jpg"),
        "Elephants_3840x2160.jpg",
    ),
    "plasma-workspace-wallpapers": (
        *("Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf"),
        *("Grey", "Kite", "OneStandsOut", "Path", "summer_1am", "Volna"),
    ),
    "gnome-backgrounds": ("pixels-l.webp", "truchet-l.webp", "wood-l.webp"),
    "palapeli-data": None,
}
DROPPED = {"umang_by_Abhishek_Mudgal.jpg"}  # computer drawings
STAMPS = "tuxpaint-stamps-default"
GCOMPRIS = "gcompris-qt-data"
SUFFIXES = {".jpg", ".png", ".webp"}
MIN_BYTES = 60_000  # below: previews
MIN_SIDE = 160
MIN_COLOURS = 0.3  # distinct colours in a sample of the opaque pixels: drawings have far fewer
RESOURCES = ("categorization", "clickgame", "explore_farm_animals", "explore_monuments", "explore_world_animals")
NEW_RESOURCES = ("details", "erase", "explore_world_music")
ENLIGHTENMENT = "enlightenment-data"
ENLIGHTENMENT_PICTURES = (
    *("Bamboo", "Flat-Stone-Pattern", "Foggy-Trees", "God-Rays", "Green-Maple", "Lichen-Branches", "Mountain", "Peaks"),
    *("Red-Maple", "Sea-of-Lanterns", "Snow-Trees", "Spruce-Needles", "Sunset-Clouds", "Sunset-Hills"),
    *("White-Flower", "Yellow-Flower"),
)
GNOME_FACES = "gnome-control-center-data"
FACE_SIDE = 400  # the smaller ones are 96 pixels wide
NPM = {"material-kit": "2.0.4", "soft-ui-design-system": "1.0.4"}
NPM_SIDE = 400
NPM_LEFT_OUT = (
    *("landing.jpg", "profile.jpg"),  # screenshots
    *("bg3.jpg", "city.jpg", "ivana-square.jpg", "bruce-mars.jpg", "kal-visuals-square.jpg"),  # second copies
)
LEFT_OUT = {  # of --photos by name, of packages by the first digits of the SHA-256 of the file
    *("03a84f20adf8", "03e3e79c827b", "0325cb07d161", "3505b996124e", "174d7a0e3380", "08df6fd49e8d", "1186d1e77611"),
    *("0d9a7295f3aa", "139883e2c3bd", "1c2dfa89fc46", "e408208aa1a4", "1dd8a616a056", "255b59902c88", "33c892220ccf"),
    *("355e290b0db9", "3f216a881e96", "5e80ac35f2f0", "502558e12b66", "6e9f3012b40f", "7d2696764c0f", "7f218d55f43f"),
    *("8363f90c21b9", "87b0245965ed", "870428f3a3dc", "8c28f14b66d5", "8d3c8bc58522", "8e78a1be71e4", "9879d8dcd7e7"),
    *("99462a50ef54", "b027d96dd8c5", "9d8001c5ab0a", "b82248530e74", "bca695cd74e1", "e071613f9893", "e14030c987aa"),
    *("ef8a5eea8a57", "0ecebf214b7e", "fbf60329463d", "425ee97578bf", "515c5ae64894", "52de17d95799", "21bd53b8aa07"),
    *("339ff3b73b29", "ab3ab84e8b47", "efa48de5e787", "ec986f82235a", "5dc91d4230a2", "865df5627716", "53f7fae4fb52"),
    *("ce4d535bc04f", "45f038919ae8", "cd41f9e0ad14", "6605f1dd5519", "ddc28715a60a"),
}
VALIDATION = 0.176  # share of the new photographs: 60 of them


class Picture(NamedTuple):
    """A file of the set.  `source` goes into sources.json; `new` pictures may belong to the validation set."""

    name: str
    data: bytes
    source: dict[str, str]
    new: bool = False


def unpack(package: str, work: Path) -> Path:
    """Download a Debian package (once) and unpack it; returns the folder of its files."""
    folder = work / package
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=work, check=True)
        archive = next(work.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    return folder


def unpack_npm(package: str, version: str, work: Path) -> Path:
    """Download an npm package (once) and unpack it; returns the folder of its files."""
    folder = work / f"npm-{package}"
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=work, check=True)
        folder.mkdir()
        subprocess.run(["tar", "xzf", f"{package}-{version}.tgz", "-C", str(folder)], cwd=work, check=True)
    return folder


def wallpapers(package: str, folder: Path) -> list[Path]:
    """The photographs of a wallpaper package: the listed ones, the largest version of each."""
    keep = WALLPAPERS[package]
    found: dict[Path, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.stat().st_size < MIN_BYTES or "doc" in path.parts:
            continue
        names = {path.name, *path.parts}
        if path.name in DROPPED or path.stem == "screenshot" or "images_dark" in path.parts:
            continue
        if keep is None or names & set(keep):
            kind = path.parent if path.parent.name == "images" else path  # one picture, several sizes
            if kind not in found or path.stat().st_size > found[kind].stat().st_size:
                found[kind] = path
    return list(found.values())


def is_photograph(image: Image.Image) -> bool:
    """Whether the opaque part has the many distinct colours of a photograph."""
    pixels = np.asarray(image.convert("RGBA"))
    opaque = pixels[pixels[..., 3] > 200][:, :3]
    if len(opaque) < 4000:
        return False
    sample = opaque[:: max(1, len(opaque) // 10_000)]
    return len(np.unique(sample, axis=0)) > MIN_COLOURS * len(sample)


def in_resources(folder: Path, stems: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Pictures stored inside Qt resource files (.rcc): WebP by its RIFF length, JPEG by its end mark."""
    for path in sorted(p for p in folder.rglob("*.rcc") if p.stem in stems):
        data = path.read_bytes()
        for match in re.finditer(rb"RIFF(....)WEBPVP8", data, re.DOTALL):
            size = int.from_bytes(match[1], "little") + 8
            yield f"{path.stem}-{match.start():08d}.webp", data[match.start() : match.start() + size]
        for start, jpeg in jpegs(data):
            yield f"{path.stem}-{start:08d}.jpg", jpeg


def jpegs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Where JPEG files begin inside other data, and each from its first marker to the next end mark."""
    for match in re.finditer(rb"\xff\xd8\xff[\xe0\xe1]", data):
        yield match.start(), data[match.start() : data.find(b"\xff\xd9", match.start()) + 2]


def opened(data: bytes) -> Image.Image | None:
    """The decoded picture; None where it is not one: the marks also occur by chance inside compressed data."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except OSError:
        return None
    return image


def first_pictures(work: Path) -> Iterator[Picture]:
    """The photographs and cut-outs of the first training."""
    for package in WALLPAPERS:
        for path in wallpapers(package, unpack(package, work)):
            name = f"{package}-{'-'.join(path.parts[-4:])}" if path.stem[0].isdigit() else f"{package}-{path.name}"
            yield Picture(name, path.read_bytes(), {"package": package})
    for name, data in in_resources(unpack(GCOMPRIS, work), RESOURCES):
        yield Picture(name, data, {"package": GCOMPRIS})
    for path in sorted(unpack(STAMPS, work).rglob("*.png")):
        if "_mirror" not in path.stem:
            yield Picture("-".join(path.parts[-3:]), path.read_bytes(), {"package": STAMPS})


def new_pictures(work: Path) -> Iterator[Picture]:
    """The further photographs of the second training that are in packages."""
    for name, data in in_resources(unpack(GCOMPRIS, work), NEW_RESOURCES):
        yield Picture(name, data, {"package": GCOMPRIS}, True)
    for path in sorted(unpack(ENLIGHTENMENT, work).rglob("*.edj")):
        if path.stem in ENLIGHTENMENT_PICTURES:  # each holds one picture in several sizes
            data = max((jpeg for _, jpeg in jpegs(path.read_bytes()) if opened(jpeg)), key=len)
            yield Picture(f"{ENLIGHTENMENT}-{path.stem}.jpg", data, {"package": ENLIGHTENMENT}, True)
    for path in sorted(unpack(GNOME_FACES, work).glob("usr/share/pixmaps/faces/*.jpg")):
        if min(Image.open(path).size) >= FACE_SIDE:
            yield Picture(f"{GNOME_FACES}-{path.name}", path.read_bytes(), {"package": GNOME_FACES}, True)
    for package, version in NPM.items():
        for path in sorted(unpack_npm(package, version, work).rglob("*.jpg")):
            is_left_out = path.name in NPM_LEFT_OUT or path.name.startswith("curved")  # renderings
            if not is_left_out and min(Image.open(path).size) >= NPM_SIDE:
                yield Picture(f"{package}-{path.name}", path.read_bytes(), {"package": f"npm {package}"}, True)


def photographs(folder: Path) -> Iterator[Picture]:
    """The photographs of a folder that its sources.json lists.

    Raises:
        FileNotFoundError: there is no sources.json.
    """
    if not (folder / "sources.json").is_file():
        raise FileNotFoundError(f"{folder} holds no sources.json; it lists file, repository, path and licence of each.")
    for entry in json.loads((folder / "sources.json").read_text()):
        path = folder / entry["file"]
        if path.stem not in LEFT_OUT:
            source = {key: entry[key] for key in ("repository", "path", "licence")}
            yield Picture(path.name, path.read_bytes(), source, True)


def place(picture: Picture) -> str | None:
    """The folder of a picture: photos, validation or stamps; None leaves it out."""
    digest = hashlib.sha256(picture.data).hexdigest()
    image = opened(picture.data)
    package = picture.source.get("package")
    if image is None or digest[:12] in LEFT_OUT or (min(image.size) < MIN_SIDE and package != STAMPS):
        return None
    if package in (GCOMPRIS, STAMPS) and not is_photograph(image):
        return None
    if package == STAMPS or image.mode == "RGBA":
        return "stamps"
    return "validation" if picture.new and int(digest[:8], 16) < VALIDATION * 2**32 else "photos"


def collect(args: argparse.Namespace) -> None:
    """Collect the pictures and write the list of sources.

    Raises:
        FileExistsError: the output folder has pictures already.
    """
    folders = {name: args.out / name for name in ("photos", "validation", "stamps")}
    for folder in folders.values():
        if folder.exists():
            raise FileExistsError(f"{folder} exists, and a picture of an older set could stay in it; delete it first.")
        folder.mkdir(parents=True)
    work, sources = args.out / "packages", []
    given = photographs(args.photos) if args.photos else iter(())
    for picture in (*first_pictures(work), *new_pictures(work), *given):
        if kind := place(picture):
            with (folders[kind] / picture.name).open("xb") as file:  # two of one name: stop
                file.write(picture.data)
            sources.append({"file": f"{kind}/{picture.name}", **picture.source})
    (args.out / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")
    photos, validation, stamps = (len(list(folder.iterdir())) for folder in folders.values())
    print(f"{photos} photographs, {validation} for validation and {stamps} cut-outs in {args.out}")


def main() -> None:
    """Collect the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("training-set"))
    parser.add_argument("--photos", type=Path, help="a folder of further photographs with its sources.json")
    run(parser, collect)


if __name__ == "__main__":
    main()
