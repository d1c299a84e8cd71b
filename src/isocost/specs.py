"""Frozen specs: what every artifact is a function of. YAML or JSON in and out, and a digest that names the artifact.

This module imports nothing of ours but the errors. A field added after release is listed in its class's `NEUTRAL` with
the value that means "as before"; while it holds that value it stays out of the digest, so old stores keep their keys.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from isocost.errors import SpecError, did_you_mean

SCHEMA = 1
NO_TRAINING_IMAGES = "kind 'images' needs `train`: folders or .tar shards of captioned images"
Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
GuidanceMode = Literal["cfg", "cfg++", "autoguidance", "embedded"]
Interval = tuple[int, int]
Spacing = Literal["leading", "linspace", "trailing", "lcm"]
Split = Literal["selection", "report", "all"]


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no blanks and shortest round-trip floats: equal values give equal bytes."""
    return _CANONICAL.encode(value)


def digest_of(value: Any) -> str:
    """sha256 (64 hex digits) of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class Spec(BaseModel):
    """Base of all specs: frozen, no unknown fields, a digest, and YAML in and out."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    NEUTRAL: ClassVar[dict[str, Any]] = {}
    __slots__ = ("_canonical_text",)  # not a field: neither compared, nor copied, nor pickled

    def canonical(self) -> dict[str, Any]:
        """Plain values of the fields that count in the digest."""
        return {name: _plain(value) for name, value in self.counted().items()}

    @property
    def canonical_text(self) -> str:
        """`canonical_json(self.canonical())`. Kept, as thousands of cells share most of the specs that they hold."""
        try:
            return self._canonical_text
        except AttributeError:
            object.__setattr__(self, "_canonical_text", _json_object(self._texts()))
            return self._canonical_text

    @property
    def digest(self) -> str:
        """sha256 of the spec's type, schema number and canonical fields, as `digest_of` would take them together."""
        text = _json_object(self._texts() | {"type": f'"{type(self).__name__}"', "schema": str(SCHEMA)})
        return hashlib.sha256(text.encode()).hexdigest()

    def counted(self) -> dict[str, Any]:
        """The fields that count in the digest, as they are."""
        fields = {}
        for name in type(self).__pydantic_fields__:  # `model_fields` is a property that takes longer than all of this
            value = getattr(self, name)
            if name not in self.NEUTRAL or value != self.NEUTRAL[name]:
                fields[name] = value
        return fields

    def _texts(self) -> dict[str, str]:
        return {name: _text(value) for name, value in self.counted().items()}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)

    @classmethod
    def from_yaml(cls, text: str, where: str = "spec") -> Self:
        """Parse YAML or JSON. Raises `SpecError` with the field's path and the nearest right name."""
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SpecError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
        return cls.parse(value, where)

    @classmethod
    def parse(cls, value: Any, where: str = "spec") -> Self:
        if not isinstance(value, dict):
            raise SpecError(f"{where}: expected fields of {cls.__name__}, found {type(value).__name__}.")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise SpecError(_explain(cls, error, where)) from None


def _plain(value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):  # most are, and studies of 10,000 cells ask for all
        return value
    if isinstance(value, Spec):
        return value.canonical()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _text(value: Any) -> str:
    """`canonical_json` of what `_plain` makes of a value."""
    kind = type(value)
    if kind in (str, int, bool):  # a float is left out, as 0.0 and -0.0 are equal
        return _known_text(value)
    if kind is float and math.isfinite(value):
        return repr(value)
    if kind in (tuple, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Spec):  # last, as pydantic makes this slow
        return value.canonical_text
    return canonical_json(_plain(value))


_known_text = functools.lru_cache(maxsize=4096, typed=True)(canonical_json)


def _json_object(texts: dict[str, str]) -> str:
    return "{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}"


def _explain(cls: type[Spec], error: ValidationError, where: str) -> str:
    """One line: file, path of the field, what was wrong, and the nearest right field where one was unknown."""
    # An unknown field first: a misspelt required one is then named as such, not as missing.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    path = ".".join(str(part) for part in first["loc"]) or cls.__name__
    if first["type"] == "extra_forbidden":
        owner: Any = cls
        for part in first["loc"][:-1]:
            owner = _spec_of(owner, str(part)) or owner
        return f"{where}: {path}: unknown field.{did_you_mean(str(first['loc'][-1]), owner.model_fields)}"
    found = "" if isinstance(first.get("input"), dict) else f" (found {first.get('input')!r})"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {path}: {first['msg'].removeprefix('Value error, ')}{found}{more}"


def _spec_of(owner: type[Spec], field: str) -> type[Spec] | None:
    """The Spec class in the annotation of `owner.field`, looking inside tuples and unions."""
    info = owner.model_fields.get(field)
    waiting = [info.annotation] if info else []
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, Spec):
            return kind
        waiting.extend(getattr(kind, "__args__", ()))
    return None


class ModelSpec(Spec):
    """One member of a family. `width` is c, the channels of the first level; all else follows from the family.

    `in_channels` beyond `out_channels` are a condition's: those of an image's latent, beside the noise. With a
    `guidance_dim` the guidance scale, embedded so wide, goes in beside the timestep (arXiv 2210.03142, section 3.1).
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {"guidance_dim": None}
    family: str
    width: int = Field(gt=0)
    context_dim: int = Field(gt=0, description="width of a text token embedding")
    num_heads: int = Field(default=8, gt=0)
    in_channels: int = Field(default=4, gt=0)
    out_channels: int = Field(default=4, gt=0)
    guidance_dim: int | None = Field(default=None, ge=4, multiple_of=2)

    @property
    def name(self) -> str:
        return f"c{self.width}"

    @property
    def conditioned(self) -> ModelSpec:
        """The same member with an image's latent beside the noise (arXiv 2404.01367, Fig. 2): twice the inputs."""
        return self.model_copy(update={"in_channels": 2 * self.out_channels})

    @property
    def takes_image(self) -> bool:
        """Whether it is given an image's latent beside the noise."""
        return self.in_channels > self.out_channels


class NoiseSchedule(Spec):
    """x_t = alpha x0 + sigma eps at integer timesteps 0..num_train_timesteps-1. Defaults: Stable Diffusion 1.5's betas.

    `kind`: of the betas, by diffusers' names; squaredcos_cap_v2, the cosine, does not use `beta_start` and `beta_end`.
    `flow` has none: alpha = 1 - sigma with sigma even over (0, 1], then moved towards noise by `shift` (Stable
    Diffusion 3, arXiv 2403.03206, section 5.3.2). `final_alpha` is the noise level that the last sampling step lands
    on: `one` (a clean image) or `first` (timestep 0's, diffusers' `set_alpha_to_one=False`).
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {"shift": 1.0}
    kind: Literal["scaled_linear", "linear", "squaredcos_cap_v2", "flow"] = "scaled_linear"
    num_train_timesteps: int = Field(default=1000, ge=2)
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    zero_terminal_snr: bool = False
    final_alpha: Literal["one", "first"] = "one"
    shift: float = Field(default=1.0, gt=0, description="of a flow: more than 1 spends more timesteps near pure noise")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind != "flow" and self.shift != 1:
            raise ValueError(f"shift {self.shift:g} is of kind 'flow' only: leave it out")
        if self.kind == "flow" and self.zero_terminal_snr:
            raise ValueError("zero_terminal_snr is of betas; a flow ends in pure noise as it is: leave it out")
        return self


class SceneOptions(Spec):
    """How varied procedural scenes are: at most `groups` groups of at most `count` equal objects, textured or plain."""

    NEUTRAL: ClassVar[dict[str, Any]] = {"count": 4, "textures": True}
    count: int = Field(default=4, ge=1, le=4)
    textures: bool = True
    groups: int = Field(default=2, ge=1, le=2)
    version: int = Field(default=1, ge=1)


FILTER_FIELDS = ("caption_characters", "caption_words", "width", "height", "shorter_side", "aspect")


class Filter(Spec):
    """Keep the images where `min` <= `field` <= `max`.

    field: caption_characters, caption_words; width, height, shorter_side in pixels, as the image's header says; aspect,
    longer over shorter side; or json.NAME, a number in the sample's .json (json.aesthetic; json.a.b goes deeper).
    missing: what becomes of an image without that field, or whose header cannot be read: an error, or it is counted and
    dropped or kept.
    """

    field: str
    min: float | None = None
    max: float | None = None
    missing: Literal["error", "drop", "keep"] = "error"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.field not in FILTER_FIELDS and not re.fullmatch(r"json\.[^\s]+", self.field):
            raise ValueError(
                f"no field '{self.field}' to filter by.{did_you_mean(self.field, (*FILTER_FIELDS, 'json.NAME'))}"
            )
        if self.min is None and self.max is None:
            raise ValueError("a filter needs `min`, `max` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: nothing would be kept")
        return self


class DataSource(Spec):
    """Where captioned images come from, before encoding. A path is where to look; the digest of what lies there counts.

    `kind` "scenes" draws image i from (seed, i); "images" reads WebDataset tars or a folder with captions at `train`
    (where members are trained) and `val`. `autoencoder` and `text_encoder` of the members: a shipped asset's name, a
    local folder, a hub id, or "own": trained on this source by the study's first stage.

    Paths may be URLs of any store that fsspec knows. `filters`: which of the training images are used; `images` counts
    those that pass. `encode`: all images ahead of training, into files, or "live", as training asks for them.
    `embeddings`: a caption's lies in those files once, or in each that uses it, so that one can be read alone.

    `instances`: for objective `dreambooth`, the first so many images show the subject, the others its class.

    With a `degradation` (a name in `isocost.data.degradation`) images are photographs for super-resolution, whose
    captions are not read: `images` pairs of a crop of `resolution` pixels and what is left of it, drawn from (seed, i).
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {"filters": (), "encode": "ahead", "embeddings": "once", "degradation": None}
    NEUTRAL |= {"instances": None}
    kind: Literal["scenes", "images"] = "scenes"
    resolution: int = Field(default=32, ge=8, description="pixels a side")
    images: int | None = Field(default=None, ge=1, description="how many images; None: all there are")
    seed: int = 0
    scenes: SceneOptions = SceneOptions()
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    autoencoder: str = "scenes-vae"
    text_encoder: str = "scenes-clip-condition"
    encoder_training: EncoderTraining | None = None
    filters: tuple[Filter, ...] = ()
    encode: Literal["ahead", "live"] = "ahead"
    embeddings: Literal["once", "each_file"] = "once"
    degradation: str | None = None
    instances: int | None = Field(default=None, ge=1)

    def counted(self) -> dict[str, Any]:
        """Paths are where to look, not what is there: they stay out of the digest."""
        return {name: value for name, value in super().counted().items() if name not in ("train", "val")}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "scenes" and self.images is None:
            raise ValueError("scenes are endless: say how many images to draw in `images`")
        if self.kind == "images" and not (self.train or self.val):
            raise ValueError(NO_TRAINING_IMAGES)
        if "own" in (self.autoencoder, self.text_encoder) and self.encoder_training is None:
            raise ValueError("an encoder is 'own' but `encoder_training` does not say how to train it")
        if self.kind == "scenes" and self.filters:
            raise ValueError("filters are for kind 'images'; scenes are drawn as they are asked for")
        if self.degradation is not None:
            if self.kind != "images" or self.filters or self.images is None:
                raise ValueError(
                    "a degradation is for kind 'images', without filters; crops are endless: say how many in `images`"
                )
            if self.resolution % 4:
                raise ValueError(f"resolution {self.resolution} has no quarter, which a degradation to x4 leaves")
        return self


class EncoderTraining(Spec):
    """How a study's first stage trains an autoencoder and a pair of CLIPs (one conditions, the other scores)."""

    autoencoder_images: int = Field(gt=0, description="images seen in training")
    clip_images: int = Field(gt=0, description="images seen in training, each CLIP")
    channels: int = Field(default=32, gt=0, description="autoencoder channels at full resolution")
    latent_channels: int = Field(default=4, gt=0)
    hidden: int = Field(default=64, gt=0, description="width of the conditioning text encoder")
    vocabulary: int = Field(default=1024, gt=0, description="BPE tokens")
    context_length: int = Field(default=32, gt=2, description="tokens, start and end included")
    batch: int = Field(default=64, gt=0)
    seed: int = 0


class DataSpec(Spec):
    """Encoded data: shards of latents and text embeddings, named by content. Paths live outside, in a locator.

    degradation: of the low-resolution images whose latents lie beside the others; None: there are none. instances: the
    first images that show a subject, the others showing its class; None: no subject's.
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {"degradation": None, "instances": None}
    digest_of_shards: str
    images: int = Field(gt=0)
    resolution: int
    latent_shape: tuple[int, int, int]
    context_shape: tuple[int, int]
    autoencoder: str = Field(description="content digest")
    text_encoder: str = Field(description="content digest")
    degradation: str | None = None
    instances: int | None = Field(default=None, ge=1)


class Optimizer(Spec):
    """AdamW with peak learning rate `lr`. Kind "muon" leaves hidden matrices to Muon, at `muon_lr`, without decay.

    `lr_scaling`: what a member's width does to its rates. "constant", as in the paper: nothing. "width": AdamW's rate
    of weights whose fan-in grows with width is lr x base_width / width (muP, arXiv 2203.03466, Table 3), so that `lr`,
    chosen at `base_width`, serves the whole ladder. Muon's updates have a norm that does not go with width: `muon_lr`
    stays.
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {
        "kind": "adamw",
        "muon_lr": 0.02,
        "lr_scaling": "constant",
        "base_width": None,
    }
    kind: Literal["adamw", "muon"] = "adamw"
    muon_lr: float = Field(default=0.02, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    lr_scaling: Literal["constant", "width"] = "constant"
    base_width: int | None = Field(default=None, gt=0, description='of "width": the width that `lr` was chosen at')

    @model_validator(mode="after")
    def _has_a_base(self) -> Self:
        if (self.lr_scaling == "width") != (self.base_width is not None):
            raise ValueError("lr_scaling 'width' goes with base_width, the width that lr was chosen at: give both")
        return self


class LrSchedule(Spec):
    """Learning rate as a function of images seen: linear warm-up, then constant, or cosine to 0 at the end."""

    kind: Literal["constant", "cosine"] = "cosine"
    warmup_images: int = Field(default=0, ge=0)


class Ema(Spec):
    """Exponential moving average of the weights, by images seen: decay of a step = 0.5 ** (batch / halflife).

    Early on the half-life is at most `rampup` x images seen (EDM2, arXiv 2312.02696, training loop).
    """

    halflife_images: int = Field(default=10_000, gt=0)
    rampup: float | None = Field(default=0.05, gt=0)


class CheckpointRef(Spec):
    """A checkpoint by content. Which folder holds it is known to a locator, outside every digest."""

    content_digest: str
    weights: Literal["ema", "raw"] = "ema"
    images_seen: int = Field(ge=0)


ScaleRange = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]
"""Guidance scales from the first to the second, drawn evenly, one an image."""


class Consistency(Spec):
    """How a student learns to give the same image from everywhere on a trajectory: objective `consistency`.

    A noised image takes one DDIM step of 20 timesteps (of 1000: to the next of the 50 of spacing `lcm`), and what the
    student makes of it is to be what its moving average, `ema`, makes of where that leads.
        lcm     the teacher takes the step, guided by a scale from `guidance`, which is embedded in the student; None:
                unguided. The distance is that of two images (arXiv 2310.04378, Algorithm 1)
        codi    the student takes the step itself. The distance is that of two noises, plus `data_weight` x that of the
                student's image to the data (arXiv 2310.01407)
    `distance`: squares, or pseudo-Huber with its `huber_c` (arXiv 2310.14189). `sigma_data` and `timestep_scaling`: of
    the boundary scalings, as diffusers' LCMScheduler has them.
    """

    setting: Literal["lcm", "codi"] = "lcm"
    guidance: ScaleRange | None = None
    distance: Literal["l2", "huber"] = "huber"
    huber_c: float = Field(default=0.001, gt=0)
    data_weight: float = Field(default=1.0, ge=0, description="codi only")
    sigma_data: float = Field(default=0.5, gt=0)
    timestep_scaling: float = Field(default=10.0, gt=0)

    @model_validator(mode="after")
    def _has_whom_to_learn_guidance_from(self) -> Self:
        _check_scales(self.guidance)
        if self.setting == "codi" and self.guidance is not None:
            raise ValueError(
                "setting 'codi' learns from itself, and so no guidance: leave `guidance` out, or use 'lcm'"
            )
        return self


class Guided(Spec):
    """How a student learns a guided teacher, and then to take fewer steps (arXiv 2210.03142): objective `guided`.

    `steps` None is stage 1: the student gives in one evaluation what its teacher gives in two, for any scale of
    `guidance`, which is embedded in it. `steps` N is a round of stage 2: a step of N is to lead where two DDIM steps of
    2N lead the teacher, itself a student of stage 1 or of the round before.
    `weighting` of the squared error of the image: `v` (SNR + 1) or `snr` (at least 1).
    `stochastic`: the N-step student also learns to start from between its timesteps, as sampler `ddim_back` asks.
    """

    guidance: ScaleRange = (1.0, 8.0)
    steps: int | None = Field(default=None, ge=1, le=512)
    weighting: Literal["snr", "v"] = "v"
    stochastic: bool = False

    @model_validator(mode="after")
    def _halves(self) -> Self:
        _check_scales(self.guidance)
        if self.steps is not None and self.steps & (self.steps - 1):
            raise ValueError(f"steps {self.steps} is no power of two: rounds halve the steps, as in 16, 8, 4, 2, 1")
        if self.steps is None and self.stochastic:
            raise ValueError("stochastic is of rounds: give `steps`, or leave it out")
        return self


def _check_scales(scales: ScaleRange | None) -> None:
    if scales is not None and scales[0] > scales[1]:
        raise ValueError(f"guidance {list(scales)}: give the lower scale first")


class Prior(Spec):
    """Prior preservation of objective `dreambooth`: what the images of a subject's class count beside its pictures'.

    0: none is seen.
    """

    weight: float = Field(default=1.0, ge=0)


class Lora(Spec):
    """Adapters of low rank, which alone are trained (LoRA, arXiv 2106.09685): W + (alpha / rank) B A.

    `targets`: names that the adapted layers end in. `alpha` None: the rank, so that the adapters count as they are.
    """

    rank: int = Field(default=4, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    targets: tuple[str, ...] = Field(default=("to_q", "to_k", "to_v", "to_out.0"), min_length=1)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


DISTILLED = ("consistency", "guided")
"""Objectives of students. Each has settings of its name in `TrainSettings`."""


class TrainSettings(Spec):
    """How members are trained: all of a TrainSpec but the member, the data and the seed."""

    NEUTRAL: ClassVar[dict[str, Any]] = {"timesteps": "uniform", "window": None, "consistency": None, "guided": None}
    NEUTRAL |= {"prior": None, "lora": None}
    schedule: NoiseSchedule = NoiseSchedule()
    prediction: Prediction = "v_prediction"
    objective: str = "denoise"
    timesteps: Literal["uniform", "logit_normal"] = Field(
        default="uniform", description="how timesteps are drawn in training; logit_normal: the middle ones more often"
    )
    images: int = Field(gt=0, description="images seen in all")
    batch: int = Field(gt=0, description="images a step, over all ranks and accumulation")
    window: int | None = Field(
        default=None, ge=1, description="images that a shuffle reaches over, shard by shard; None: over all of them"
    )
    accumulation: int = Field(default=1, ge=1, description="micro-batches a step")
    optimizer: Optimizer = Optimizer()
    lr_schedule: LrSchedule = LrSchedule()
    clip: float | None = Field(default=1.0, gt=0, description="gradient norm")
    precision: Literal["fp32", "bf16"] = "fp32"
    caption_dropout: float = Field(ge=0, lt=1, description="share of captions replaced by the empty one; CFG needs > 0")
    ema: Ema = Ema()
    checkpoints: tuple[int, ...] = Field(
        default=(), description="images seen at which a checkpoint is kept for scoring"
    )
    consistency: Consistency | None = None
    guided: Guided | None = None
    prior: Prior | None = None
    lora: Lora | None = None

    @property
    def scales(self) -> ScaleRange | None:
        """The guidance scales that a student is distilled for, where they are embedded in it."""
        return self.guided.guidance if self.guided else self.consistency.guidance if self.consistency else None

    def other_evaluations(self, teacher_embeds: bool = False) -> int:
        """Of teacher and average, an image in training. A guided teacher's are two, unless it embeds guidance."""
        asked = 1 if teacher_embeds or self.scales is None else 2
        if self.consistency:
            return 1 + (asked if self.consistency.setting == "lcm" else 0)
        if self.guided:
            return asked if self.guided.steps is None else 2  # the teacher of a round embeds guidance always
        return 0

    @model_validator(mode="after")
    def _says_how_to_distil(self) -> Self:
        for name in DISTILLED:
            if (self.objective == name) != (getattr(self, name) is not None):
                raise ValueError(f"objective '{name}' goes with settings `{name}`: give both, or neither")
        if self.objective in DISTILLED and self.schedule.kind == "flow":
            raise ValueError("distillation takes steps of DDIM on a schedule of betas: not of kind 'flow'")
        return self

    @model_validator(mode="after")
    def _says_how_to_tune(self) -> Self:
        if (self.objective == "dreambooth") != (self.prior is not None):
            raise ValueError("objective 'dreambooth' goes with settings `prior`: give both, or neither")
        if self.prior is not None and self.prior.weight and self.batch % 2:
            raise ValueError(f"batch {self.batch} has no half for the images of the class, which prior.weight > 0 asks")
        if self.lora is not None and self.optimizer.kind == "muon":
            raise ValueError("lora goes with optimizer.kind 'adamw': Muon's updates are of full rank")
        return self

    @model_validator(mode="after")
    def _predicts_what_the_schedule_can(self) -> Self:
        if self.schedule.kind == "flow" and self.prediction not in ("flow", "sample"):
            raise ValueError(
                f"a schedule of kind 'flow' goes with prediction 'flow' or 'sample', not {self.prediction}"
            )
        return self

    @model_validator(mode="after")
    def _has_captions_to_drop(self) -> Self:
        if self.objective == "superres" and self.caption_dropout:
            raise ValueError("objective 'superres' has no captions to drop: set caption_dropout to 0")
        return self

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch % self.accumulation:
            raise ValueError(f"batch {self.batch} is not a multiple of accumulation {self.accumulation}")
        for images in self.checkpoints:
            if images % self.batch or not 0 < images <= self.images:
                raise ValueError(f"checkpoints: {images} is not a multiple of batch {self.batch} up to {self.images}")
        if self.images % self.batch:
            raise ValueError(f"images {self.images} is not a multiple of batch {self.batch}")
        return self


class TrainSpec(TrainSettings):
    """One training run. Its digest names the run's folder; two runs of one digest are one run."""

    model: ModelSpec
    data: DataSpec
    seed: int = 0
    start_from: CheckpointRef | None = None
    teacher: CheckpointRef | None = None


class Guidance(Spec):
    """Guidance, one convention: D = weak + scale (D(prompt) - weak), so that scale 1 is none (but in `cfg++`).

    `mode`: what is weak, and how scale is meant.
        cfg           the empty prompt's D (classifier-free guidance, arXiv 2207.12598)
        cfg++         the same, and a step adds the empty prompt's noise back (arXiv 2406.08070): scale is its lambda,
                      0 to 1. With `ddim` at eta 0, and with `euler`, whose step that is
        autoguidance  D of the same prompt by the checkpoint `guide`, a smaller or less trained one (arXiv 2406.02507)
        embedded      the scale is an input of the checkpoint, which was distilled to need one evaluation
                      (arXiv 2210.03142): every plan of such a checkpoint, at scale 1 too

    `interval` (arXiv 2404.07724) limits guidance to timesteps low <= t <= high.
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {"interval": None, "mode": "cfg", "guide": None}
    scale: float = Field(default=1.0, ge=0)
    interval: Interval | None = None
    mode: GuidanceMode = "cfg"
    guide: CheckpointRef | None = None

    @property
    def active(self) -> bool:
        """Whether it is done outside the network, and so costs anything."""
        return self.mode == "cfg++" or (self.scale != 1 and self.mode != "embedded")

    @property
    def needs_empty_prompt(self) -> bool:
        """Whether the empty prompt is evaluated, which takes a checkpoint trained with caption dropout."""
        return self.active and self.mode != "autoguidance"

    @model_validator(mode="after")
    def _fits_its_mode(self) -> Self:
        _check_mode(self.mode, (self.scale,), self.interval, self.guide)
        return self


def _check_mode(mode: GuidanceMode, scales: Iterable[float], interval: Interval | None, guide: Any) -> None:
    """Raise `ValueError` unless scales, interval and guide are such as the guidance mode has."""
    if (guide is not None) != (mode == "autoguidance"):
        raise ValueError("`guide` is the weaker checkpoint of mode 'autoguidance': give both, or neither")
    for scale in scales:
        if mode == "cfg++" and scale > 1:
            raise ValueError(f"scale {scale:g} is cfg++'s lambda, which goes from 0 to 1")
    if interval is not None and mode == "embedded":
        raise ValueError("an embedded scale is in every evaluation: leave `interval` out")
    if interval is not None and interval[0] > interval[1]:
        raise ValueError(f"interval {list(interval)} is empty: give the lower timestep first")


class Stage(Spec):
    """Which checkpoint serves the trajectory down to its share `until` (1 = to the end) of the steps."""

    checkpoint: CheckpointRef
    until: float = Field(default=1.0, gt=0, le=1)


class BestOf(Spec):
    """Make n candidates of every image, and keep the one that a CLIP finds closest to its caption.

    `scorer`: the CLIP's content digest. Best of 1 is a plan without this.
    """

    n: int = Field(ge=2)
    scorer: str


class SamplingPlan(Spec):
    """One way to spend a sampling budget. What the image of a (prompt, replicate) is a function of, with the engine."""

    NEUTRAL: ClassVar[dict[str, Any]] = {"steps_offset": 1, "best_of": None}
    stages: tuple[Stage, ...] = Field(
        min_length=1, description="the checkpoint; or several that share the trajectory (T-Stitch, arXiv 2402.14167)"
    )
    schedule: NoiseSchedule
    prediction: Prediction
    sampler: str
    steps: int = Field(ge=1)
    spacing: Spacing = "trailing"
    steps_offset: int = Field(default=1, ge=0, description="added to spacing 'leading' (1 in Stable Diffusion)")
    guidance: Guidance = Guidance()
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM's eta: 0 deterministic, 1 DDPM's small variance")
    variance: Literal["small", "large"] = Field(default="small", description="DDPM only")
    best_of: BestOf | None = None

    @field_validator("stages")
    @classmethod
    def _down_to_the_end(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        shares = [stage.until for stage in stages]
        if shares[-1] != 1 or any(later <= sooner for sooner, later in pairwise(shares)):
            raise ValueError(f"stages end at shares {shares} of the steps: they have to rise, the last to 1")
        return stages


class PromptSet(Spec):
    """A named list of prompts. `digest_of_prompts` covers ids and texts; `split` halves the list by parity of place."""

    name: str
    version: int = 1
    digest_of_prompts: str
    split: Split = "all"


class EngineSpec(Spec):
    """How images are computed, so far as it moves their last bits. Images of two engines never share a cell.

    `device` is the network's: encoders and extractors run on the CPU. `network`: whose forward pass; lean is that of
    `isocost.sampling.unet` for a UNet, the same images to 2e-4 in less time, and another network's own.
    """

    dtype: Literal["fp32", "bf16"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    network: Literal["diffusers", "lean"] = "lean"
    compiled: bool = False
    threads: int = Field(default=1, ge=1)
    batch: int = Field(default=64, ge=1, description="B: images a network call, fixed; a short chunk is padded to it")


class SampleKey(Spec):
    """What a set of images is a function of; how many there are is not in it."""

    plan: SamplingPlan
    promptset: PromptSet
    latent_shape: tuple[int, int, int]
    noise_version: int = 1
    engine: EngineSpec


def split_metric(name: str) -> tuple[str, str | None]:
    """`fd[fid-tf]` -> ("fd", "fid-tf"); `fd` -> ("fd", None). Raises `SpecError` for anything else."""
    match = re.fullmatch(r"([a-z][a-z0-9-]*)(?:\[(.+)\])?", name)
    if match is None:
        raise SpecError(f"metric '{name}': expected NAME, or NAME[EXTRACTOR] as in fd[fid-tf].")
    return match[1], match[2]


def _metric_name(name: str) -> str:
    try:
        split_metric(name)
    except SpecError as error:
        raise ValueError(str(error)) from None
    return name


MetricName = Annotated[str, AfterValidator(_metric_name)]
"""A metric of `isocost.scoring.metrics.METRICS`, with the extractor that it is to use in brackets: `fd[fid-tf]`."""


class ScoreSpec(Spec):
    """One number from one sample set. `extractor` and `reference` are identities (name and content digest).

    `protocol`: how the reference was chosen, where that has a name (`coco2014-30k@...`); "" for a study's held-out
    images. Scores of two protocols are never put in one table.
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {"protocol": ""}
    metric: str
    extractor: str
    reference: str | None = None
    resize: str = "none"
    n: int = Field(ge=1)
    split: Split = "all"
    protocol: str = ""


class Score(Spec):
    """A value with its standard error, n, digests and environment. None for `stderr`: the metric has none."""

    sample_key: str
    score_spec: ScoreSpec
    value: float
    stderr: float | None
    bias: float | None = None
    n: int
    higher_is_better: bool
    unit: str = ""
    valid: bool = Field(
        default=True, description="False where n is too small for the value to be trusted (shown greyed)"
    )
    environment: dict[str, Any]


class Budget(Spec):
    """What one image may cost. paper: forward FLOPs over those of the reference member x steps."""

    unit: Literal["paper", "gflops", "seconds"]
    limit: float = Field(gt=0)


def _distinct(values: tuple) -> tuple:
    if not values or len(set(values)) != len(values):
        raise ValueError("needs one value or more, each once")
    return values


class Stitch(Spec):
    """Two members that share a trajectory: `first` serves a share of the steps, `then` the rest.

    T-Stitch (arXiv 2402.14167) begins with the small one; a small one at the end is as easily said. A share is rounded
    to whole steps; at 0 it is `then` alone and at 1 `first` alone: the very cells of a grid without a stitch.
    """

    first: str
    then: str
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.25, 0.5, 0.75)

    _each_once = field_validator("shares")(_distinct)

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.first == self.then:
            raise ValueError(f"`first` and `then` are both {self.first}: name two members")
        return self


class Grid(Spec):
    """Cells of a sweep: every member x sampler x steps x guidance scale, and x n of best-of-n.

    A member is named by its width (`c16`), a given checkpoint by its folder.
        members          whose cells these are; None: all members, but the guide
        stitch           two members that share each trajectory, instead of `members`
        mode, interval   as in `Guidance`; a scale that does nothing (1, but in cfg++) makes the unguided cell
        guide            member whose final checkpoint guides, in mode autoguidance; of the same training seed
        spacing          None: "trailing" for members, for a given checkpoint what its own scheduler says
        best_of          candidates an image, of which `scorer` keeps one; 1: none are made
        scorer           CLIP that keeps: shipped, a folder, a hub id or 'own'. A metric by the same CLIP is then
                         what is optimised, and no longer judges
        undistilled      of a study that distils: cells of what its members were before, instead of theirs
        seeds            training seeds whose members these are; None: all of the study's
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {
        "members": None,
        "stitch": None,
        "mode": "cfg",
        "interval": None,
        "guide": None,
        "best_of": (1,),
        "scorer": "scenes-clip-score",
        "undistilled": False,
        "seeds": None,
    }
    samplers: tuple[str, ...] = ("ddim",)
    steps: tuple[int, ...] = (1, 2, 4, 8, 20)
    guidance: tuple[float, ...] = (1.0,)
    spacing: Spacing | None = None
    eta: float = Field(default=0.0, ge=0, le=1)
    variance: Literal["small", "large"] = "small"
    members: tuple[str, ...] | None = None
    stitch: Stitch | None = None
    mode: GuidanceMode = "cfg"
    interval: Interval | None = None
    guide: str | None = None
    best_of: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    scorer: str = "scenes-clip-score"
    undistilled: bool = False
    seeds: tuple[int, ...] | None = None

    def counted(self) -> dict[str, Any]:
        """Spacing None counts as "trailing", as which it was written before it could be None."""
        return super().counted() | {"spacing": self.spacing or "trailing"}

    @property
    def named(self) -> tuple[str, ...]:
        """The members that it names, its guide aside."""
        return (self.stitch.first, self.stitch.then) if self.stitch else self.members or ()

    @field_validator("samplers", "steps", "guidance", "best_of", "members", "seeds")
    @classmethod
    def _each_once(cls, values: tuple | None) -> tuple | None:
        return None if values is None else _distinct(values)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check_mode(self.mode, self.guidance, self.interval, self.guide)
        if self.stitch is not None and self.members is not None:
            raise ValueError("`stitch` names its two members itself: leave `members` out")
        if self.guide in self.named:
            raise ValueError(f"guide {self.guide} would guide itself: take it out of the members, or name another")
        return self


class Between(Spec):
    """Ways between two prompts: images are drawn of mixtures of their embeddings, all from one noise.

    The first two prompts of a list are the ends of the first way, the next two those of the second. `alphas`: weights
    of the first end along each way. `path`: through the embedding of every token, on the line or on the arc between.
    """

    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (1.0, 0.8, 0.5, 0.2, 0.0)
    path: Literal["linear", "spherical"] = "linear"

    @field_validator("alphas")
    @classmethod
    def _from_end_to_end(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        falling = all(later < sooner for sooner, later in pairwise(alphas))
        if len(alphas) < 3 or not falling or (alphas[0], alphas[-1]) != (1, 0):
            raise ValueError(f"alphas {list(alphas)} have to fall from 1 to 0, with one between or more")
        return alphas


class Evaluation(Spec):
    """What every cell is scored by: prompts, images, extractors and metrics.

    `between`: of images between prompts, `images` in all, instead of images of prompts.

    A metric is a name, judged by `extractor` (Frechet distances on `fd_dims` of its dimensions, `accuracy` by
    `classifier`), or a name with the extractor that it is to use: `fd[fid-tf]`, `kid[own]`, `fd[scenes-clip-score-64]`.
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {"between": None}
    prompts: str = Field(
        default="scenes-val",
        description="name of a prompt list, a path to a .txt with a prompt a line, or PROTOCOL:FOLDER",
    )
    images: int = Field(default=512, ge=2, description="images a cell: prompts 0..n-1, one replicate each")
    references: int = Field(default=4096, ge=2, description="held-out real images")
    reference_files: tuple[str, ...] = Field(
        default=(), description="references made by `isocost reference build`, instead of held-out images"
    )
    metrics: tuple[MetricName, ...] = ("fd", "kid", "clip", "accuracy")
    extractor: str = Field(
        default="scenes-clip-score", description="CLIP that scores: shipped, a folder, a hub id or 'own'"
    )
    fd_dims: int | None = Field(
        default=32, ge=2, description="Frechet distance on a fixed projection to so many dimensions"
    )
    classifier: str = Field(default="scenes-attributes", description="attribute classifier of the caption accuracy")
    select_by: MetricName = Field(default="fd", description="metric by which guidance is chosen on the selection half")
    keep_images: bool = Field(default=False, description="store the images of every cell, not only their features")
    between: Between | None = None

    @model_validator(mode="after")
    def _whole_ways(self) -> Self:
        if self.between is not None and self.images % (step := 2 * len(self.between.alphas)):
            raise ValueError(
                f"images {self.images} are not whole ways of {step // 2} images, as many in either half of the "
                f"prompts: give a multiple of {step}"
            )
        return self

    def counted(self) -> dict[str, Any]:
        """Paths are where to look, not what is there: they stay out of the digest."""
        return {name: value for name, value in super().counted().items() if name != "reference_files"}


class Subject(Spec):
    """Something that a few pictures show, of a kind that captions call `noun`.

    `pictures`: folders or tars of them, of which those count whose .json says `subject: NAME`, or all where none says
    so; without any, it is the procedural subject of that name (`isocost.data.subjects`).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    noun: str
    pictures: tuple[str, ...] = ()

    def counted(self) -> dict[str, Any]:
        """Where pictures lie is where to look, not what is there."""
        return super().counted() | {"pictures": bool(self.pictures)}


class Subjects(Spec):
    """What a study of DreamBooth teaches its members, each subject to each by itself (arXiv 2208.12242).

    `token`: the word that stands before the noun and means the subject; None: one that no caption of the data has, of
    the text encoder's own tokens. `prompt`: of every picture, `{}` being the subject; of images of its class, `{}` is
    the noun alone. None: each procedural picture has a caption that says its place and background, as scenes have, and
    images of the class are those of `prompts`. `prompts`: what tuned members draw, `images` of each. `class_images`:
    how many images of the class a member draws, before it is tuned to preserve its prior, and afterwards to be scored.
    `unpreserved`: each is also tuned without images of the class.
    """

    subjects: tuple[Subject, ...] = Field(min_length=2, description="intervals are over subjects")
    token: str | None = None
    prompt: str | None = "a {}"
    prompts: tuple[str, ...] = Field(min_length=2)
    images: int = Field(default=4, ge=2, description="images of each prompt")
    pictures: int = Field(default=5, ge=2, description="of a procedural subject; of others the most that count")
    class_images: int = Field(default=64, ge=4)
    unpreserved: bool = True

    @model_validator(mode="after")
    def _says_what_to_draw(self) -> Self:
        names = [subject.name for subject in self.subjects]
        if len(set(names)) != len(names):
            raise ValueError(f"subjects {', '.join(names)}: each needs a name of its own")
        if self.prompt is None and any(subject.pictures for subject in self.subjects):
            raise ValueError("pictures in files have no captions to stand for a `prompt`: give one, as in 'a {}'")
        for prompt in (self.prompt or "{}", *self.prompts):
            if prompt.count("{}") != 1:
                raise ValueError(f"prompt '{prompt}' says nowhere, or twice, where the subject stands: write {{}} once")
        if self.token is not None and (not self.token.strip() or len(self.token.split()) > 1):
            raise ValueError(
                f"token '{self.token}' has to be one word: without it the prompt of the subject is that of its class"
            )
        return self


class StudySpec(Spec):
    """A scaling study: data, members, training, grid and scores. Every artifact follows from it.

    `checkpoints`: folders of other people's text-to-image checkpoints, in diffusers' layout, that are sampled beside
    the members or instead of them; each is called by the last part of its path, and known by its content.

    `start_from`: the store of a study of text-to-image whose final checkpoints the members of the same names, and
    seeds, start from. Where it lies does not count: training runs know their start by its content.
    """

    NEUTRAL: ClassVar[dict[str, Any]] = {"checkpoints": (), "start_from": None, "dreambooth": None}
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataSource
    members: tuple[ModelSpec, ...] = ()
    checkpoints: tuple[str, ...] = ()
    start_from: str | None = None
    train: TrainSettings | None = Field(default=None, description="how members are trained; None where there are none")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="training seeds")
    grid: Grid = Grid()
    extra_grids: tuple[Grid, ...] = Field(
        default=(), description="more cells, for instance another sampler at fewer steps"
    )
    curve: Grid | None = Field(
        default=None, description="one cell at each kept checkpoint: quality against training compute"
    )
    evaluation: Evaluation = Evaluation()
    engine: EngineSpec = EngineSpec()
    strips: str | None = Field(
        default=None, description="prompt list of the report's image strips; None: the first scored ones"
    )
    dreambooth: Subjects | None = None

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Those on final checkpoints."""
        return (self.grid, *self.extra_grids)

    @property
    def given(self) -> dict[str, Path]:
        """Name -> folder of the checkpoints that are given."""
        return {Path(path).name: Path(path) for path in self.checkpoints}

    def counted(self) -> dict[str, Any]:
        """A given checkpoint counts by its name, as grids do name it: its path is where to look."""
        fields = super().counted()
        fields |= {"start_from": True} if self.start_from else {}
        return fields | {"checkpoints": list(self.given)} if self.checkpoints else fields

    @model_validator(mode="after")
    def _has_something_to_sample(self) -> Self:
        if not self.members and not self.checkpoints:
            raise ValueError("nothing to sample: give `members` to train, `checkpoints` of others, or both")
        if self.members and self.train is None:
            raise ValueError("`train` is missing, and there are members to train")
        if self.members and self.data.kind == "images" and not self.data.train:
            raise ValueError(f"data: {NO_TRAINING_IMAGES}")
        objective = self.train.objective if self.train is not None else None
        if (objective == "dreambooth") != (self.dreambooth is not None):
            raise ValueError("train.objective 'dreambooth' goes with `dreambooth`, its subjects: give both, or neither")
        if self.dreambooth is not None and (self.start_from is None or self.checkpoints):
            raise ValueError("dreambooth tunes members of another study: name its store in start_from alone")
        if objective in DISTILLED:
            if self.start_from is None:
                raise ValueError(f"objective '{objective}' needs teachers: name the store of their study in start_from")
        elif (objective == "superres") != (self.data.degradation is not None):
            raise ValueError("train.objective 'superres' goes with data.degradation: give both, or neither")
        for grid in (*self.grids, *([self.curve] if self.curve else [])):
            if unknown := set(grid.seeds or ()) - set(self.seeds):
                raise ValueError(f"a grid is of training seeds {sorted(unknown)}, which are not among `seeds`")
            if grid.undistilled and (objective not in DISTILLED or grid is self.curve):
                raise ValueError("a grid of `undistilled` members is of a study that distils them, and no curve")
        return self


DataSource.model_rebuild()


def load(path: str | Path, cls: type[Spec]) -> Any:
    """Read a spec of class `cls` from a YAML or JSON file."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: not a text file: expected YAML or JSON.") from None
    return cls.from_yaml(text, where=str(path))
