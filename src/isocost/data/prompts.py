"""Prompt lists: procedural scenes, the held-out captions of an image set, the paper's lists, or a text file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from isocost.data import scenes
from isocost.data.images import open_images
from isocost.errors import DataError, SpecError, did_you_mean
from isocost.specs import Between, DataSource, PromptSet, SceneOptions, Split, digest_of

# Held-out scenes are drawn from their own seeds, far from any seed that a study would train on.
VALIDATION_SEED = 1_000_003
REFERENCE_SEED = 1_000_033

SHIPPED_LISTS = Path(__file__).parents[1] / "assets" / "prompts"


class Blend(NamedTuple):
    """What lies between two prompts, by their texts. `weight`: of the first. `path`: as in `Between`."""

    first: str
    second: str
    weight: float
    path: str


Drawn = str | Blend
"""What an image is drawn of: a prompt's text, or what lies between two."""


@dataclass(frozen=True)
class Prompt:
    """One prompt. `attributes` are what a scene's image must show (empty where nothing is known).

    way: where it lies between two others, with a `text` for people.
    """

    id: str
    text: str
    attributes: dict[str, str | int]
    way: OnTheWay | None = None

    @property
    def drawn(self) -> Drawn:
        return self.text if self.way is None else self.way.blend


@dataclass(frozen=True)
class OnTheWay:
    """A place between two prompts: on way `number`, where `first` has this `weight`."""

    number: int
    first: Prompt
    second: Prompt
    weight: float
    path: str

    @property
    def blend(self) -> Blend:
        return Blend(self.first.text, self.second.text, self.weight, self.path)


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


@dataclass(frozen=True)
class Ways(PromptList):
    """Places on the ways between the prompts of another list, two by two.

    A prompt's id, and so its noise, is that of the way's first end: at weight 1 it is that prompt, to the bit. Places
    of two ways alternate, so that a whole way is in one half.
    """

    ends: PromptList | None = None
    between: Between = field(default_factory=Between)

    def at(self, place: int) -> tuple[Prompt, int]:
        assert self.ends is not None
        both, rest = divmod(self.whole_place(place), 2 * len(self.between.alphas))
        number, weight = 2 * both + rest % 2, self.between.alphas[rest // 2]
        (first, replicate), (second, _) = self.ends.at(2 * number), self.ends.at(2 * number + 1)
        text = f"{weight:g} x {first.text} + {1 - weight:g} x {second.text}"
        return Prompt(first.id, text, {}, OnTheWay(number, first, second, weight, self.between.path)), replicate


def ways(ends: PromptList, between: Between) -> Ways:
    """The ways from the first prompt of a list to the second, from the third to the fourth, and so on."""
    identity = digest_of([ends.promptset.canonical(), between.canonical()])
    return Ways(PromptSet(name=f"{ends.promptset.name}-ways", digest_of_prompts=identity), None, None, ends, between)


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
