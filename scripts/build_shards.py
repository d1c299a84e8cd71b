"""Rebuild the real-image shards that studies train and test on from local clones of their public repositories.

    python scripts/build_shards.py CLONES OUT [SET ...]

CLONES holds one folder a repository, named as in `COMMITS` (docs/data.md lists the `git clone` commands); SET is one of
`SETS`, all of them by default. A shard is a WebDataset tar: KEY.webp or KEY.jpg, KEY.json (source, licence, caption)
and, where there is a caption, KEY.txt. Equal inputs and encoders give equal bytes; each tar's sha256 is compared with
that of the shard our results used, and the outcome is printed. Emoji names come from `pip install emoji==2.16.0`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
from PIL import Image

Sample = tuple[str, dict[str, bytes]]  # key; extension -> payload
Shards = dict[str, list[Sample]]  # tar name without its suffix -> samples

COMMITS = {
    "budgie-backgrounds": "82067426f1dde366e9c9038fdbe457c2527525dd",
    "codec-corpus": "55decfe826d350815e3af3b5ac69b882fb2943d3",
    "dreambooth": "4f887af7970a06fc0cd3adaa1d0b368547d6a1d0",
    "emojilib": "4e1c15de584dd07af4a7f580c8c57d1da616c89e",
    "fluentui-emoji-unicode": "7a40f1a2d064d76e436813edc0f09b6c8cde5da8",
    "noto-emoji": "b3e3051a088047d19fd4d49b1c3ac42fb8c3aaf8",
    "unicode-emoji-json": "250dc80aee0eeb2b591905a6df5fde3e063e5b12",
}

# sha256 of the tars our results used: Pillow 13.0.0 (libwebp 1.6.0, libjpeg-turbo 3.2.0), emoji 2.16.0.
EXPECTED = {
    "dreambooth-256": "5c15d5aa4fdc5ced26d84cc8e928171086b2785e07dbbd671229db4c7632fe4d",
    "emoji-fluent3d-128-train": "6a7d3883c2fd88b20e279061502fd367f72b44c147561d9f8983b766fe7c607f",
    "emoji-fluent3d-128-val": "9effaa24abf1a1638490754c7316505d253bac46e8d845f60b88d7429ba8bb02",
    "emoji-noto-128-train": "76b04f2d3141d305e8c399d3c60ad4cc76dc03a87116b05ecf5496060daf9dae",
    "emoji-noto-128-val": "44cbaf208cfe353a253c1bc565f123a2a39776f471a2c3b731952352dde05d5c",
    "sr-test-kodak": "1d257307dae5c7a4146a557dd94e9572d3487a59dc20e756879eefa0acfb12b2",
    "sr-train-budgie": "b933ac1e1e0588cda130a0210066a5ae98aac34b68c55bb76696ea3a116e0577",
    "sr-train-cid22": "4dc8d1d1e451940b38f830c2321f200a20f9064bcc7218d4920c6b76844907dd",
    "sr-val-cid22": "fb56b113318661873d094cb85ed942dd3cf54ceca5c6931a9687db3831aee325",
}

# ------------------------------------------------------------------------------------------------------------- encoding


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image) -> bytes:
    return encode(image, "JPEG", quality=92, subsampling=0)  # 4:4:4


def lossless_webp(image: Image.Image) -> bytes:
    return encode(image, "WEBP", lossless=True, quality=60)  # quality is only the effort here


def emoji_webp(image: Image.Image) -> bytes:
    """128 x 128 RGBA, white below transparent pixels, so that `convert("RGB")` gives a white background."""
    side = max(image.size)  # two Fluent drawings are 256 x 264
    square = Image.new("RGBA", (side, side))
    square.paste(image.convert("RGBA"), ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.array(square.resize((128, 128), Image.Resampling.LANCZOS))
    pixels[pixels[..., 3] == 0] = (255, 255, 255, 0)
    return encode(Image.fromarray(pixels), "WEBP", quality=90, exact=True)


def as_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


# --------------------------------------------------------------------------------------------------------------- emoji

TONES = {"\U0001f3fb": "light", "\U0001f3fc": "", "\U0001f3fd": "", "\U0001f3fe": "", "\U0001f3ff": "dark"}
VARIATION_SELECTOR = "\ufe0f"


def concept(unicode: str) -> str:
    """The emoji without skin tones and variation selectors: what all versions of one drawing share."""
    return "".join(c for c in unicode if c not in TONES and c != VARIATION_SELECTOR)


def in_val(unicode: str) -> bool:
    """One concept in twenty, by md5: all of its versions, in both styles, are held out together."""
    return int(hashlib.md5(concept(unicode).encode()).hexdigest(), 16) % 20 == 0


def wanted_tone(unicode: str) -> bool:
    """No skin tone, or light or dark alone; the middle tones and two-tone pairs are left out."""
    tones = [TONES[c] for c in unicode if c in TONES]
    return not tones or (len(tones) == 1 and tones[0] != "")


class EmojiFacts:
    """Names (PyPI `emoji`), groups (unicode-emoji-json) and keywords (emojilib), by emoji."""

    def __init__(self, clones: Path) -> None:
        try:
            from emoji import EMOJI_DATA  # type: ignore[import-not-found]
        except ImportError:
            sys.exit("the emoji sets take their names from a package: pip install emoji==2.16.0")
        groups = json.loads((clones / "unicode-emoji-json/data-by-emoji.json").read_text("utf-8"))
        keywords = json.loads((clones / "emojilib/dist/emoji-en-US.json").read_text("utf-8"))
        self.names = {plain(u): re.sub("[_-]", " ", facts["en"].strip(":")) for u, facts in EMOJI_DATA.items()}
        self.groups = {plain(u): facts["group"] for u, facts in groups.items()}
        self.keywords = {plain(u): [word.replace("_", " ") for word in words] for u, words in keywords.items()}

    def describe(self, unicode: str, style: str, license: str, source: str) -> dict[str, Any] | None:
        """The JSON of a sample; None for what is no emoji (flags' letters, keycap parts)."""
        name = self.names.get(plain(unicode))
        if name is None:
            return None
        tones = [TONES[c] for c in unicode if c in TONES]
        return {
            "caption": f"a {style} emoji of {name}",
            "group": self.groups.get(concept(unicode), "Other"),
            "keywords": self.keywords.get(concept(unicode), []),
            "license": license,
            "name": name,
            "skin_tone": tones[0] if tones else None,
            "source": source,
            "style": style,
            "unicode": unicode,
        }


def plain(unicode: str) -> str:
    return unicode.replace(VARIATION_SELECTOR, "")


def emoji_shards(clones: Path, *, clone: str, pattern: str, name: re.Pattern[str], **about: str) -> Shards:
    """Train and val shards of one style. `name` finds the code points in a file's name."""
    facts = EmojiFacts(clones)
    shards: Shards = {f"emoji-{about['shard']}-128-train": [], f"emoji-{about['shard']}-128-val": []}
    for path in sorted((clones / clone).glob(pattern)):
        found = name.fullmatch(path.name)
        unicode = "".join(chr(int(code, 16)) for code in re.split("[-_]", found[1])) if found else ""
        if not found or not wanted_tone(unicode):
            continue
        source = path.relative_to(clones / clone).as_posix()
        metadata = facts.describe(unicode, about["style"], about["license"], source)
        if metadata is None:
            continue
        with Image.open(path) as image:
            files = {"json": as_json(metadata), "txt": metadata["caption"].encode(), "webp": emoji_webp(image)}
        split = "val" if in_val(unicode) else "train"
        shards[f"emoji-{about['shard']}-128-{split}"].append((f"{about['prefix']}-{found[1]}", files))
    return shards


def fluent(clones: Path) -> Shards:
    return emoji_shards(
        clones,
        clone="fluentui-emoji-unicode",
        pattern="assets/*_3d.png",
        name=re.compile(r"([0-9a-f]{4,}(?:-[0-9a-f]+)*)_3d\.png"),  # each drawing is there twice: by code, by emoji
        shard="fluent3d",
        prefix="fluent",
        style="3D",
        license="MIT",
    )


def noto(clones: Path) -> Shards:
    return emoji_shards(
        clones,
        clone="noto-emoji",
        pattern="png/128/emoji_u*.png",
        name=re.compile(r"emoji_u([0-9a-f]+(?:_[0-9a-f]+)*)\.png"),
        shard="noto",
        prefix="noto",
        style="flat",
        license="Apache-2.0",
    )


# ---------------------------------------------------------------------------------------------------------- photographs

# Charts, logos, drawings and thumbnails among CID22's training images.
CID22_LEFT_OUT = {
    "14768480444_bc0a1b4a2e_o",
    "1454613116",
    "1536017106",
    "21169144185_3f7977cb5a_o",
    "26103251787_d8635e260d_o",
    "35875869841_0b10e41e57_o",
    "3DPieChart",
    "Abstract-Art-1",
    "AgilityCourseElements",
    "Beam-Space-Processing",
    "Boxplot",
    "EPICA Delta D Plot",
    "Lungs-Cross-Section-Illustration",
    "No-interference",
    "Performance-Graph",
    "StockQuoteGraph-20120521",
    "Temperament-pie-chart-according-to-Eysenck",
    "Verkehrstote Deutschland 1953-2012",
    "adriankierman-report-page",
    "akfcrc022",
    "klepas-Gentle-giants-of-the-sea-3",
    "newplot (1)",
    "newplot",
    "nicubunu_Game_baddie_Policeman",
    "ularapi_Semarang_City_Logo",
}
BUDGIE_LEFT_OUT = {"abstract-spiral", "ocean-waves", "valley-midnight", "waves-midnight"}
BUDGIE_FLAT_CROPS = {"canyon-wren-02", "extreme-desert-hike-02"}  # next to no contrast
CROP = 512
MAX_COLUMNS = 3


def whole_images(clones: Path, folder: str, prefix: str, license: str, lossless: bool) -> Iterator[Sample]:
    """The PNGs of a folder of codec-corpus at their own size."""
    for path in (clones / "codec-corpus" / folder).glob("*.png"):
        if path.stem in CID22_LEFT_OUT:
            continue
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        metadata = {"license": license, "size": list(image.size), "source": f"{folder}/{path.name}"}
        pixels = {"webp": lossless_webp(image)} if lossless else {"jpg": jpeg(image)}
        yield f"{prefix}-{re.sub('[^A-Za-z0-9_]', '_', path.stem)}", {"json": as_json(metadata), **pixels}


def cid22(clones: Path) -> Shards:
    folder, license = "CID22/CID22-512", "CC-BY-SA-4.0"
    return {
        "sr-train-cid22": list(whole_images(clones, f"{folder}/training", "cid22", license, lossless=False)),
        "sr-val-cid22": list(whole_images(clones, f"{folder}/validation", "cid22", license, lossless=True)),
    }


def kodak(clones: Path) -> Shards:
    license = "unrestricted use (Eastman Kodak)"
    return {"sr-test-kodak": list(whole_images(clones, "kodak", "kodak", license, lossless=True))}


def budgie(clones: Path) -> Shards:
    """A centred grid of 512 x 512 crops of each photograph at half size; the key ends in row and column."""
    samples = []
    for path in (clones / "budgie-backgrounds/backgrounds").glob("*.jpg"):
        if path.stem in BUDGIE_LEFT_OUT:
            continue
        with Image.open(path) as opened:
            half = (opened.width // 2, opened.height // 2)
            image = opened.convert("RGB").resize(half, Image.Resampling.LANCZOS)
        columns, rows = min(image.width // CROP, MAX_COLUMNS), image.height // CROP
        left, top = (image.width - columns * CROP) // 2, (image.height - rows * CROP) // 2
        for row in range(rows):
            for column in range(columns):
                name = f"{path.stem}-{row}{column}"
                if name in BUDGIE_FLAT_CROPS:
                    continue
                x, y = left + column * CROP, top + row * CROP
                source = f"backgrounds/{path.name}"
                metadata = {"crop": [x, y], "downscale": 2, "license": "CC0-1.0", "source": source}
                files = {"jpg": jpeg(image.crop((x, y, x + CROP, y + CROP))), "json": as_json(metadata)}
                samples.append((f"budgie-{name}", files))
    return {"sr-train-budgie": samples}


# ----------------------------------------------------------------------------------------------------------- dreambooth


def dreambooth(clones: Path) -> Shards:
    """The 30 subjects of DreamBooth (arXiv 2208.12242), short side 256."""
    folder = clones / "dreambooth/dataset"
    classes = subject_classes((folder / "prompts_and_classes.txt").read_text("utf-8"))
    credits = subject_credits((folder / "references_and_licenses.txt").read_text("utf-8"), set(classes))
    samples = []
    for subject, class_name in classes.items():
        for path in (folder / subject).glob("*.jpg"):
            caption = f"a photo of a {class_name}"
            metadata = {
                "class_name": class_name,
                "credit": credits[subject],
                "license": "Unsplash" if "unsplash" in credits[subject] else "CC-BY-4.0",
                "live": class_name in ("cat", "dog"),
                "source": f"dataset/{subject}/{path.name}",
                "subject": subject,
            }
            with Image.open(path) as image:
                scale = 256 / min(image.size)
                size = (round(image.width * scale), round(image.height * scale))
                pixels = jpeg(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
            files = {"jpg": pixels, "json": as_json(metadata), "txt": caption.encode()}
            samples.append((f"{subject}-{path.stem}", files))
    return {"dreambooth-256": samples}


def subject_classes(text: str) -> dict[str, str]:
    """subject -> class, from the lines "subject_name,class" of DreamBooth's prompts_and_classes.txt."""
    table = text.split("subject_name,class", 1)[1].split("Prompts", 1)[0]
    return dict(line.strip().split(",") for line in table.splitlines() if "," in line)


def subject_credits(text: str, subjects: set[str]) -> dict[str, str]:
    """subject -> who took the photographs: the rest of the line "subject: ...", or the line below it."""
    lines, credits = text.splitlines(), {}
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        subject, colon, rest = line.partition(":")
        if colon and subject in subjects:
            credits[subject] = rest.strip() or below.strip().removeprefix("(").removesuffix(")")
    return credits


# ------------------------------------------------------------------------------------------------------------- assembly

SETS: dict[str, tuple[Callable[[Path], Shards], tuple[str, ...]]] = {  # what builds a set, and the clones it reads
    "emoji-fluent3d": (fluent, ("fluentui-emoji-unicode", "emojilib", "unicode-emoji-json")),
    "emoji-noto": (noto, ("noto-emoji", "emojilib", "unicode-emoji-json")),
    "cid22": (cid22, ("codec-corpus",)),
    "kodak": (kodak, ("codec-corpus",)),
    "budgie": (budgie, ("budgie-backgrounds",)),
    "dreambooth": (dreambooth, ("dreambooth",)),
}


def write_tar(path: Path, samples: list[Sample]) -> str:
    """Write samples in the order of their file names, with no owner and no time; sha256 of the tar."""
    files = {f"{key}.{extension}": data for key, payload in samples for extension, data in payload.items()}
    if len(files) != sum(len(payload) for _, payload in samples):
        sys.exit(f"{path.name}: two source images have one key")
    with tarfile.open(path, "w") as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_commit(clone: Path) -> None:
    if not clone.is_dir():
        sys.exit(f"{clone}: no such clone; docs/data.md lists the commands that make it")
    found = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if found.stdout.strip() != COMMITS[clone.name]:
        sys.exit(
            f"{clone} is not at {COMMITS[clone.name]}: git -C {clone} checkout {COMMITS[clone.name]}, or --any-commit"
        )


def main(clones: Path, out: Path, *sets: str, any_commit: bool = False) -> None:
    """Rebuild shards under OUT from the repositories in CLONES.

    Parameters
    ----------
    clones: folder that holds the clones.
    out: folder for the tars.
    sets: which sets; all by default.
    any_commit: take the clones as they are, at whatever commit.
    """
    unknown = sorted(set(sets) - set(SETS))
    if unknown:
        sys.exit(f"unknown set '{unknown[0]}'. Known: {', '.join(SETS)}.")
    out.mkdir(parents=True, exist_ok=True)
    for name in sets or SETS:
        build, needs = SETS[name]
        for clone in needs if not any_commit else ():
            check_commit(clones / clone)
        for shard, samples in build(clones).items():
            digest = write_tar(out / f"{shard}.tar", samples)
            verdict = "identical to ours" if digest == EXPECTED[shard] else "DIFFERS from ours; see docs/data.md"
            print(f"{shard}.tar: {len(samples)} samples, sha256 {digest[:12]}, {verdict}")


if __name__ == "__main__":
    cyclopts.run(main)
