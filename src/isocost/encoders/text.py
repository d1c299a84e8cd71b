"""Captions to token embeddings, and CLIP: transformers' classes behind lists of strings and uint8 arrays.

`TextEncoder` conditions a network; `ClipScorer` gives image and text features for scores. They are never loaded from
one training: the encoder that conditions never scores.

transformers takes seconds to import, so it is imported when a network is loaded, not with this file.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from isocost.encoders.inputs import in_fixed_batches, resize
from isocost.encoders.weights import (
    content_digest,
    load_into,
    locate,
    quiet_random,
    read_config,
    read_weights,
    write_weights,
)
from isocost.errors import DataError
from isocost.models.cost import text_encoder_flops

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
START, END = "<|startoftext|>", "<|endoftext|>"
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CACHE_BYTES = 2**26
CAPTIONS_A_CALL = 32
PIXELS_A_CALL = 2**16


# --- tokenizer ---


def train_tokenizer(captions: Iterable[str], vocabulary: int, context_length: int) -> CLIPTokenizer:
    """Byte-level BPE in CLIP's format, learned from captions; at most `vocabulary` tokens, 514 of them being the bytes
    (inside and at the end of a word) and the two marks. So any text can be written, whatever the captions hold."""
    letters = sorted(ByteLevel.alphabet())
    words = _clip_tokenizer(_vocabulary(letters, []), [], context_length).backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = words.normalizer, words.pre_tokenizer
    trainer = BpeTrainer(vocab_size=4 * vocabulary, min_frequency=2, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned]
    merges = merges[: max(0, vocabulary - 2 * len(letters) - 2)]
    return _clip_tokenizer(_vocabulary(letters, merges), merges, context_length)


def _vocabulary(letters: list[str], merges: list[tuple[str, str]]) -> dict[str, int]:
    """CLIP's order: letters, letters that end a word, merges, marks. `END` has the highest number."""
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _clip_tokenizer(
    vocabulary: dict[str, int], merges: list, context_length: int, pad_token: str = END
) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    # vocab= and merges=, never vocab_file=: transformers 5 ignores the files and gives a vocabulary of two tokens.
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=[tuple(pair) for pair in merges],  # type: ignore[arg-type]
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=pad_token,
        model_max_length=context_length,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: str | Path) -> Path:
    """Write vocab.json, merges.txt and tokenizer_config.json, which old and new transformers both read."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": tokenizer.pad_token}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.model_max_length, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return folder


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """From vocab.json and merges.txt, or the tokenizer.json that transformers 5 writes instead.

    Raises `DataError` naming a file that is missing or corrupt.
    """
    try:
        vocabulary, merges = _bpe_of(folder)
        # Where both name a mark, transformers goes by special_tokens_map.json; Stable Diffusion 2 pads with "!" there.
        settings: dict[str, Any] = {}
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            settings |= json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: tokenizer not readable ({error}); it needs vocab.json and merges.txt.") from None
    pad = settings.get("pad_token") or END
    pad = pad["content"] if isinstance(pad, dict) else pad
    return _clip_tokenizer(vocabulary, merges, int(settings.get("model_max_length", 77)), pad)


def _bpe_of(folder: Path) -> tuple[dict[str, int], list]:
    """Vocabulary and merges of a tokenizer's folder."""
    if not (folder / "vocab.json").is_file() and (folder / "tokenizer.json").is_file():
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        return model["vocab"], [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return json.loads((folder / "vocab.json").read_text(encoding="utf-8")), merges


def _tokenizer_beside(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a model's folder: inside it, or in a pipeline's `tokenizer/` next to it."""
    inside = any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json"))
    return load_tokenizer(folder if inside else folder.parent / "tokenizer")


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str], length: int) -> torch.Tensor:
    """int64 [N, length]: cut where too long (the end mark stays), padded with the tokenizer's padding, the end mark."""
    rows = tokenizer(list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return rows["input_ids"]  # type: ignore[return-value]


def count_truncated(tokenizer: CLIPTokenizer, captions: Sequence[str], length: int) -> int:
    """How many captions have more than `length` tokens, marks included."""
    return sum(len(row) > length for row in tokenizer(list(captions), truncation=False, verbose=False)["input_ids"])


def _tokenizer_identity(tokenizer: CLIPTokenizer) -> list[Any]:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return [model["vocab"], merges, *([] if tokenizer.pad_token == END else [tokenizer.pad_token])]


# --- conditioning ---


class TextEncoder:
    """A frozen CLIPTextModel with its tokenizer.

    digest: sha256 of config, tokenizer and weights. context_shape: (L tokens, D). module: the CLIPTextModel.
    """

    def __init__(self, module: CLIPTextModel, tokenizer: CLIPTokenizer, device: str = "cpu"):
        self.module = module.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        length = min(module.config.max_position_embeddings, tokenizer.model_max_length)
        self.context_shape = (int(length), int(module.config.hidden_size))
        self.digest = content_digest(module.config.to_diff_dict(), module, _tokenizer_identity(tokenizer))
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """fp32 [N, L, D]: the last hidden state, all L places; what `StableDiffusionPipeline` feeds its network.

        Captions met recently come from memory (64 MiB at most).
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._cache]
        found = {caption: self._cache[caption] for caption in dict.fromkeys(captions) if caption in self._cache}
        if new:
            ids = tokenize(self.tokenizer, new, self.context_shape[0])
            found |= zip(new, in_fixed_batches(self._forward, ids, CAPTIONS_A_CALL), strict=True)
        for caption, embedding in found.items():
            self._cache[caption] = embedding
            self._cache.move_to_end(caption)
        while len(self._cache) * 4 * self.context_shape[0] * self.context_shape[1] > CACHE_BYTES:
            self._cache.popitem(last=False)
        return np.stack([found[caption] for caption in captions])

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.module(input_ids=ids.to(self.device)).last_hidden_state

    def count_truncated(self, captions: Sequence[str]) -> int:
        """How many captions do not fit in L tokens."""
        return count_truncated(self.tokenizer, captions, self.context_shape[0])

    @cached_property
    def flops(self) -> int:
        """Forward FLOPs (2 a multiply-add) of one prompt of L tokens."""
        return text_encoder_flops(self.module, self.context_shape[0])

    def save(self, folder: str | Path, tokenizer_folder: str | Path | None = None) -> Path:
        """Write config, weights under old-style names (`text_model.…`, which every transformers version reads) and
        the tokenizer, beside them or in `tokenizer_folder`, as a pipeline wants it."""
        folder = Path(folder)
        _write_config(self.module.config.to_diff_dict(), "CLIPTextModel", "clip_text_model", folder)
        tensors = {f"text_model.{_bare(name)}": value for name, value in self.module.state_dict().items()}
        write_weights({name: value for name, value in tensors.items() if "position_ids" not in name}, folder / WEIGHTS)
        save_tokenizer(self.tokenizer, tokenizer_folder or folder)
        return folder


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")


def _write_config(config: dict[str, Any], architecture: str, model_type: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in config.items() if name not in ("transformers_version", "dtype")}
    kept |= {"architectures": [architecture], "model_type": model_type}
    (folder / "config.json").write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def load_text_encoder(ref: str | Path, device: str = "cpu") -> TextEncoder:
    """Load a shipped asset ("scenes-clip-condition"), a folder (a CLIP, its text tower, or a pipeline), or a hub id.

    Raises `DataError` that says where it looked, or which file is corrupt.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    files = ("config.json", WEIGHTS, *TOKENIZER_FILES, *(f"tokenizer/{name}" for name in TOKENIZER_FILES))
    folder = locate(ref, "text_encoder", files)
    config = read_config(folder)
    if config.get("model_type") not in ("clip", "clip_text_model"):
        raise DataError(f"{folder}: config.json is of '{config.get('model_type')}', not of a CLIP text encoder.")
    text = config["text_config"] if config["model_type"] == "clip" else config
    with quiet_random():
        module = CLIPTextModel(CLIPTextConfig(**_public(text)))
    tensors = read_weights(folder / WEIGHTS)
    prefix = "text_model." if any(name.startswith("text_model.") for name in module.state_dict()) else ""
    text_only = {f"{prefix}{_bare(name)}": value for name, value in tensors.items() if name.startswith("text_model.")}
    load_into(module, text_only or tensors, folder / WEIGHTS)
    return TextEncoder(module, _tokenizer_beside(folder), device)


def _public(config: dict[str, Any]) -> dict[str, Any]:
    hidden = {"architectures", "transformers_version", "dtype", "torch_dtype", "model_type"}
    return {name: value for name, value in config.items() if name not in hidden and not name.startswith("_")}


# --- scoring ---


class ClipScorer:
    """A frozen CLIP with its tokenizer and image normalisation.

    digest: sha256 of config, tokenizer, normalisation and weights. dims: width of a feature. logit_scale: the factor
    on cosines that it was trained with. module: the CLIPModel.
    """

    def __init__(
        self,
        module: CLIPModel,
        tokenizer: CLIPTokenizer,
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
        device: str = "cpu",
    ):
        self.module = module.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.mean, self.std = tuple(mean), tuple(std)
        config: Any = module.config
        self.image_size = int(config.vision_config.image_size)
        self.context_length = min(config.text_config.max_position_embeddings, tokenizer.model_max_length)
        self.dims = int(config.projection_dim)
        self.logit_scale = float(module.logit_scale.exp())
        identity = [_tokenizer_identity(tokenizer), list(self.mean), list(self.std)]
        self.digest = content_digest(module.config.to_diff_dict(), module, identity)

    def image_features(self, images: np.ndarray, normalised: bool = False) -> np.ndarray:
        """uint8 [N, H, W, 3] -> fp32 [N, D]: projected features, of length 1 where `normalised`.

        Another size than the CLIP's is brought to it by antialiased bicubic resizing of the shorter side and a central
        crop.
        """
        batch = max(1, PIXELS_A_CALL // self.image_size**2)
        features = in_fixed_batches(self._image_forward, torch.from_numpy(np.ascontiguousarray(images)), batch)
        return _unit(features) if normalised else features

    def _image_forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = resize(images.to(self.device).permute(0, 3, 1, 2).float() / 255, self.image_size)
        mean, std = (torch.tensor(value, device=self.device)[:, None, None] for value in (self.mean, self.std))
        pooled = self.module.vision_model(pixel_values=(pixels - mean) / std).pooler_output
        return self.module.visual_projection(pooled)

    def text_features(self, captions: Sequence[str], normalised: bool = False) -> np.ndarray:
        """fp32 [N, D]: projected features, of length 1 where `normalised`. Long captions are cut, keeping the end."""
        ids = tokenize(self.tokenizer, captions, self.context_length)
        features = in_fixed_batches(self._text_forward, ids, CAPTIONS_A_CALL)
        return _unit(features) if normalised else features

    def _text_forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.module.text_projection(self.module.text_model(input_ids=ids.to(self.device)).pooler_output)

    def count_truncated(self, captions: Sequence[str]) -> int:
        """How many captions are cut, that a score should own up to."""
        return count_truncated(self.tokenizer, captions, self.context_length)

    def save(self, folder: str | Path) -> Path:
        """Write config, weights, tokenizer and preprocessor_config.json: what `CLIPModel.from_pretrained` reads."""
        folder = Path(folder)
        config: Any = self.module.config
        whole = config.to_diff_dict()
        whole["text_config"] = config.text_config.to_diff_dict()
        whole["vision_config"] = config.vision_config.to_diff_dict()
        _write_config(whole, "CLIPModel", "clip", folder)
        tensors = self.module.state_dict()
        write_weights({name: value for name, value in tensors.items() if "position_ids" not in name}, folder / WEIGHTS)
        save_tokenizer(self.tokenizer, folder)
        image = {"image_processor_type": "CLIPImageProcessor", "image_mean": self.mean, "image_std": self.std}
        image |= {"size": {"shortest_edge": self.image_size}, "crop_size": self.image_size, "resample": 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=2) + "\n")
        return folder


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def load_clip(ref: str | Path, device: str = "cpu") -> ClipScorer:
    """Load a shipped asset ("scenes-clip-score"), a folder saved from a CLIPModel, or a hub id.

    Raises `DataError` that says where it looked, or which file is corrupt.
    """
    from transformers import CLIPConfig, CLIPModel

    folder = locate(ref, "clip", ("config.json", WEIGHTS, "preprocessor_config.json", *TOKENIZER_FILES))
    config = read_config(folder)
    if config.get("model_type") != "clip":
        raise DataError(f"{folder}: config.json is of '{config.get('model_type')}'; a score needs a whole CLIP.")
    towers = {name: _public(config[name]) for name in ("text_config", "vision_config")}
    with quiet_random():
        module = CLIPModel(CLIPConfig(**{**_public(config), **towers}))
    load_into(module, read_weights(folder / WEIGHTS), folder / WEIGHTS)
    image = folder / "preprocessor_config.json"
    settings = json.loads(image.read_text()) if image.is_file() else {}
    mean, std = settings.get("image_mean", OPENAI_MEAN), settings.get("image_std", OPENAI_STD)
    return ClipScorer(module, load_tokenizer(folder), mean, std, device)
