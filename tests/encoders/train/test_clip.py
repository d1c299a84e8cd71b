from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from isocost.encoders.text import load_clip, load_text_encoder
from isocost.encoders.train import train_clip
from isocost.encoders.train.clip import contrast, spread_loss, words_loss


def test_it_learns_and_its_text_tower_conditions(small, tmp_path):
    lines: list[str] = []
    clip = train_clip(
        small.images, small.captions, replace(small.clip, images=1600), 0, tmp_path / "clip", tell=lines.append
    )
    assert len(lines) == 1 and "step 100/100" in lines[-1]
    images, captions = small.images(range(160)), small.captions(range(160))
    cosine = clip.image_features(images, normalised=True) @ clip.text_features(captions, normalised=True).T
    own, other = np.diag(cosine).mean(), cosine.mean()
    assert own > other + 0.1
    assert load_clip(tmp_path / "clip").digest == clip.digest
    assert load_text_encoder(tmp_path / "clip").context_shape == (24, 16)


def test_equal_captions_are_not_each_other_s_negatives():
    logits = torch.tensor([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 4.0]])
    twins = contrast(logits, ["red", "red", "blue"])
    apart = torch.nn.functional.cross_entropy(torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
    third = torch.nn.functional.cross_entropy(torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([2]))
    assert float(twins) == pytest.approx(float((2 * apart + third) / 3), rel=1e-5)
    assert float(contrast(logits, ["red", "rose", "blue"])) > float(twins) + 0.3


def test_words_loss_is_least_where_the_caption_s_words_share_the_weight():
    ids = torch.tensor([[6, 0, 2, 2, 7, 7]])  # start, three words of which two are equal, end, padding
    right = torch.full((1, 8), -20.0)
    right[0, [0, 2]] = 0
    assert float(words_loss(right, ids)) == pytest.approx(np.log(2), abs=1e-4)
    assert float(words_loss(torch.zeros(1, 8), ids)) == pytest.approx(np.log(8), abs=1e-4)


def test_spread_loss_is_0_where_token_states_vary_by_one_each_way_and_1_where_they_do_not_vary():
    states = 2 * torch.eye(4).repeat_interleave(2, 0)
    states[1::2] *= -1  # over these 8 captions the covariance is 4 x 2 / 8 = 1 in each dimension
    tokens = states[:, None, :].repeat(1, 3, 1) + torch.tensor([1.0, 2.0, 3.0])[:, None]
    assert float(spread_loss(tokens)) == pytest.approx(0, abs=1e-6)
    assert float(spread_loss(torch.ones(8, 3, 4))) == pytest.approx(1)


def test_spread_loss_widens_the_token_states(small, tmp_path):
    def trained(weight: float) -> float:
        settings = replace(small.clip, images=1600, spread_weight=weight)
        train_clip(small.images, small.captions, settings, 0, tmp_path / f"{weight}")
        states = load_text_encoder(tmp_path / f"{weight}").encode(small.captions(range(160)))
        eigenvalues = np.linalg.eigvalsh(np.cov((states - states.mean(0)).reshape(-1, states.shape[2]).T))
        return float(eigenvalues[1])  # the first is 0 always: a layer norm takes one direction away

    assert trained(5.0) > 20 * trained(0.0)
