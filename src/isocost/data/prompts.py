"""Prompt lists: procedural scenes, the held-out captions of an image set, the paper's lists, or a text file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isocost.data import scenes
from isocost.data.images import open_images
from isocost.errors import DataError, SpecError, did_you_mean
from isocost.specs import DataSource, PromptSet, SceneOptions, Split, digest_of

# Held-out scenes are drawn from their own seeds, far from any seed that a study would train on.
VALIDATION_SEED = 1_000_003
REFERENCE_SEED = 1_000_033

SHIPPED_LISTS = Path(__file__).parents[1] / "assets" / "prompts"


@dataclass(frozen=True)
class Prompt:
    """One prompt. `attributes` are what a scene's image must show (empty where nothing is known)."""

    id: str
    text: str
    attributes: dict[str, str | int]


@dataclass(frozen=True)
class PromptList:
    """A `PromptSet` and its prompts. Place i of a sample set holds prompt i modulo `len`, replicate i // `len`.

    Of a half (`promptset.split`) the places are counted anew: each holds the prompt and the replicate that it has in
    the whole list, and so the same noise.
    """

    promptset: PromptSet
    _texts: tuple[str, ...] | None
    _options: SceneOptions | None = None

    @property
    def period(self) -> int | None:
        """How many distinct prompts there are; None when endless."""
        return None if self._texts is None else len(range(self._texts_in)[self._offset :: self._stride])

    def at(self, place: int) -> tuple[Prompt, int]:
        """The prompt and replicate at a place (0, 1, ...) of a sample set."""
        place = self.whole_place(place)
        if self._texts is None:
            assert self._options is not None
            caption, attributes = scenes.describe(VALIDATION_SEED, place, self._options)
            return Prompt(f"scenes-{VALIDATION_SEED}-{place}", caption, dict(attributes)), 0
        replicate, i = divmod(place, len(self._texts))
        return Prompt(f"{self.promptset.name}-{i}", self._texts[i], {}), replicate

    def half(self, place: int) -> str:
        """`selection` or `report`: the half of the prompt at a place, by parity of the prompt's place in the list."""
        place = self.whole_place(place)
        i = place if self._texts is None else place % len(self._texts)
        return "report" if i % 2 else "selection"

    def of_half(self, split: Split) -> PromptList:
        """The prompts of one half. Raises `SpecError` where it is empty."""
        found = replace(self, promptset=self.promptset.model_copy(update={"split": split}))
        if found.period == 0:
            raise SpecError(f"prompt list '{self.promptset.name}' has no prompt in its {split} half: give two or more.")
        return found

    def whole_place(self, place: int) -> int:
        """Where in the whole list a place of this half is."""
        if self.period is None:
            return place * self._stride + self._offset
        replicate, i = divmod(place, self.period)
        return replicate * self._texts_in + i * self._stride + self._offset

    @property
    def _texts_in(self) -> int:
        return len(self._texts or ())

    @property
    def _stride(self) -> int:
        return 1 if self.promptset.split == "all" else 2

    @property
    def _offset(self) -> int:
        return int(self.promptset.split == "report")


def listed(name: str, texts: Sequence[str]) -> PromptList:
    """A finite list. Raises `SpecError` when it is empty."""
    if not texts:
        raise SpecError(f"prompt list '{name}' is empty: give one prompt a line.")
    return PromptList(PromptSet(name=name, digest_of_prompts=digest_of(list(texts))), tuple(texts))


def prompt_list(name: str, source: DataSource) -> PromptList:
    """The prompts called `name`: `scenes-val`, `val` (captions of held-out images), a shipped list, or a text file.

    Raises:
        SpecError: no list of that name, and no such file.
    """
    if name == "scenes-val":
        identity = {"generator": "scenes", "seed": VALIDATION_SEED, "options": source.scenes.canonical()}
        return PromptList(PromptSet(name=name, digest_of_prompts=digest_of(identity)), None, source.scenes)
    if name == "val":
        if not source.val:
            raise SpecError("prompts 'val' are the captions of held-out images, but data.val names no folder or shard.")
        return listed(name, open_images(source.val).captions)
    shipped = {path.stem: path for path in SHIPPED_LISTS.glob("*.txt")}
    path = shipped.get(name, Path(name))
    if not path.is_file():
        known = ["scenes-val", "val", *shipped]
        raise SpecError(f"no prompt list '{name}', and no such file.{did_you_mean(name, known)}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read prompts: {error}") from None
    return listed(path.stem, [line.strip() for line in lines if line.strip()])
