"""Rebuild the training pictures of the bundled prior `natural` from Debian packages.

    python scripts/make_training_set.py --out training-set          # downloads with apt-get, unpacks, collects

Nothing is installed: the packages are downloaded and unpacked into the output folder.  The result is
`photos/` (photographs, stored as they are), `stamps/` (cut-outs with alpha) and `sources.json`, which lists
every picture with its package.  No picture of scikit-image or scikit-learn is among them: the quality of
the prior is measured on those.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
from pathlib import Path

import numpy as np
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


def unpack(package: str, work: Path) -> Path:
    """Download a Debian package (once) and unpack it; returns the folder of its files."""
    folder = work / package
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=work, check=True)
        archive = next(work.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
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


def resources(folder: Path) -> list[tuple[str, bytes]]:
    """Pictures stored inside Qt resource files (.rcc): WebP by its RIFF length, JPEG by its end mark."""
    found = []
    for path in sorted(p for p in folder.rglob("*.rcc") if p.stem in RESOURCES):
        data = path.read_bytes()
        for match in re.finditer(rb"RIFF(....)WEBPVP8", data, re.DOTALL):
            size = int.from_bytes(match[1], "little") + 8
            found.append((f"{path.stem}-{match.start():08d}.webp", data[match.start() : match.start() + size]))
        for match in re.finditer(rb"\xff\xd8\xff[\xe0\xe1]", data):
            end = data.find(b"\xff\xd9", match.start()) + 2
            found.append((f"{path.stem}-{match.start():08d}.jpg", data[match.start() : end]))
    return found


def main() -> None:
    """Collect the pictures and write the list of sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("training-set"))
    args = parser.parse_args()
    photos, stamps = args.out / "photos", args.out / "stamps"
    photos.mkdir(parents=True, exist_ok=True)
    stamps.mkdir(parents=True, exist_ok=True)
    work, sources = args.out / "packages", []

    for package in WALLPAPERS:
        for path in wallpapers(package, unpack(package, work)):
            name = f"{package}-{'-'.join(path.parts[-4:])}" if path.stem[0].isdigit() else f"{package}-{path.name}"
            (photos / name).write_bytes(path.read_bytes())
            sources.append({"package": package, "file": f"photos/{name}"})
    for name, data in resources(unpack(GCOMPRIS, work)):
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except OSError:  # the marks also occur by chance inside compressed data
            continue
        if min(image.size) >= MIN_SIDE and is_photograph(image):
            kind = "stamps" if image.mode == "RGBA" else "photos"
            (args.out / kind / name).write_bytes(data)
            sources.append({"package": GCOMPRIS, "file": f"{kind}/{name}"})
    for path in sorted(unpack(STAMPS, work).rglob("*.png")):
        if "_mirror" not in path.stem and is_photograph(Image.open(path)):
            name = "-".join(path.parts[-3:])
            (stamps / name).write_bytes(path.read_bytes())
            sources.append({"package": STAMPS, "file": f"stamps/{name}"})

    (args.out / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")
    print(f"{len(list(photos.iterdir()))} photographs and {len(list(stamps.iterdir()))} cut-outs in {args.out}")


if __name__ == "__main__":
    main()
