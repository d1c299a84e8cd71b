"""The subjects of a study of DreamBooth: their pictures as squares, the word that means them, and all their prompts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isocost.data import scenes
from isocost.data.images import open_images, square
from isocost.data.prompts import PromptList, listed
from isocost.data.subjects import named_attributes, picture
from isocost.encoders.text import TextEncoder
from isocost.errors import DataError, SpecError, lookup
from isocost.specs import DataSource, StudySpec, Subject, digest_of

CAPTIONS_READ = 4096
WORDS = ("sks", *"zqjxvkw")


@dataclass(frozen=True, eq=False)
class Shown:
    """A subject with its pictures, uint8 [P, R, R, 3], and its prompts.

    captions: of the pictures. of_class: of its class. drawn: what tuned members draw. plain: the same with the noun
    alone, prompt by prompt.
    """

    subject: Subject
    pictures: np.ndarray
    captions: tuple[str, ...]
    of_class: PromptList
    drawn: PromptList
    plain: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.subject.name

    @functools.cached_property
    def digest(self) -> str:
        """Of the pictures as they are trained on, and their captions."""
        return digest_of([self.pictures.tolist(), self.captions])

    def asked(self, prompt: int) -> dict[str, str | int]:
        """What an image of a prompt must show, as far as scenes have a name for it."""
        return named_attributes(self.plain[prompt])


def shown(study: StudySpec, token: str) -> list[Shown]:
    """Raises `SpecError` for an unknown procedural subject, or prompts that mean its class; `DataError` for fewer
    than two pictures, and those that cannot be read."""
    assert study.dreambooth is not None
    how, found = study.dreambooth, []
    for subject in study.dreambooth.subjects:
        meant, name = f"{token} {subject.noun}".strip(), subject.noun.strip().replace(" ", "-")
        if not token.strip() or not name:
            asked = (how.prompt or how.prompts[0]).format(meant)
            raise SpecError(
                f"dreambooth: the prompt of {subject.name}, '{asked}', is that of its class: give a token and a noun."
            )
        drawn, plain = ([text.format(what) for text in how.prompts] for what in (meant, subject.noun))
        pictures = pictures_of(subject, study)
        of_class = [how.prompt.format(subject.noun)] if how.prompt else plain
        found.append(
            Shown(
                subject=subject,
                pictures=pictures,
                captions=tuple(_caption(study, subject, number).format(meant) for number in range(len(pictures))),
                of_class=listed(f"class-{name}", of_class),
                drawn=listed(f"subject-{name}", drawn),
                plain=tuple(plain),
            )
        )
    return found


def _caption(study: StudySpec, subject: Subject, number: int) -> str:
    """What a picture's caption says around the subject."""
    assert study.dreambooth is not None
    return study.dreambooth.prompt or picture(subject.name, number, study.data.resolution).caption


def pictures_of(subject: Subject, study: StudySpec) -> np.ndarray:
    """uint8 [P, R, R, 3]: squares of the study's resolution, whatever the sizes of the files."""
    assert study.dreambooth is not None
    most, side = study.dreambooth.pictures, study.data.resolution
    if not subject.pictures:
        return np.stack([picture(subject.name, number, side).image for number in range(most)])
    images = open_images(subject.pictures, captions_required=False)
    names = [images.metadata(index).get("subject") for index in range(len(images))]
    chosen = [index for index, name in enumerate(names) if name == subject.name]
    if any(names) and not chosen:
        lookup(dict.fromkeys(name for name in names if name), subject.name, "subject")
    chosen = (chosen or list(range(len(images))))[:most]
    if len(chosen) < 2:
        raise DataError(
            f"{subject.pictures[0]}: {len(chosen)} picture of {subject.name}: from one, nothing tells the subject from "
            "what is around it. Give 3 to 6."
        )
    return np.stack([square(images.decoded(index).pixels, side) for index in chosen])


def token_of(study: StudySpec, text_encoder: TextEncoder) -> str:
    """The study's token, or a rare one of its text encoder."""
    assert study.dreambooth is not None
    return study.dreambooth.token or rare_token(text_encoder, _captions(study.data))


def rare_token(text_encoder: TextEncoder, captions: Sequence[str]) -> str:
    """A word that is one token, which is in none of the captions: "sks" of Stable Diffusion's, of a small vocabulary a
    letter. Raises `SpecError` where there is none among those that are tried."""
    tokenizer = text_encoder.tokenizer
    used = {token for caption in captions for token in tokenizer.tokenize(caption)}
    for word in WORDS:
        tokens = tokenizer.tokenize(word)
        if len(tokens) == 1 and tokens[0] not in used:
            return word
    raise SpecError(f"dreambooth.token: none of {', '.join(WORDS)} is a token that captions never use: give a word.")


def _captions(source: DataSource) -> list[str]:
    """Captions of the data, or of the first of them."""
    if source.kind == "scenes":
        described = scenes.describe_all(source.seed, range(CAPTIONS_READ), source.scenes)
        return [caption for caption, _ in described]
    images = open_images(source.train)
    return [images.caption(index) for index in range(min(CAPTIONS_READ, len(images)))]
