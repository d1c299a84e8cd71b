"""Images of any size by a network of one size: squares that overlap, and are woven into one canvas.

All squares share one trajectory (MultiDiffusion, arXiv 2302.08113; StableSR, arXiv 2305.07015, section 3.4): at every
step what the network predicts for them is averaged where they overlap, so that they cannot drift apart. As what is
predicted and the denoised latent differ by an affine map, a sampler still sees one D(x, t), of the whole canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isocost.diffusion.denoiser import BindingNetwork, Network, Predict, bound
from isocost.errors import SpecError

Corner = tuple[int, int]


@dataclass(frozen=True)
class Tiles:
    """Squares of `side` cells, evenly spread over a canvas of height x width; neighbours share `overlap` at least.

    Raises `SpecError` for a canvas smaller than a square, or an overlap of more than half a square.
    """

    height: int
    width: int
    side: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 < self.side <= min(self.height, self.width):
            raise SpecError(f"tiles of {self.side} do not fit a canvas of {self.height} x {self.width}.")
        if not 0 <= self.overlap <= self.side // 2:
            raise SpecError(f"overlap {self.overlap}: from 0 to half a tile of {self.side}.")

    @cached_property
    def rows(self) -> list[int]:
        """First row of each row of squares."""
        return self._starts(self.height)

    @cached_property
    def columns(self) -> list[int]:
        """First column of each column of squares."""
        return self._starts(self.width)

    def _starts(self, length: int) -> list[int]:
        room, stride = length - self.side, self.side - self.overlap
        gaps = -(-room // stride)
        return [place * room // max(gaps, 1) for place in range(gaps + 1)]

    def ramp(self, starts: Sequence[int], place: int, scale: int) -> Tensor:
        """Weights [scale * side] along a square: rising over what it shares with the one before, falling over the next.

        scale: how many times as large as the canvas's cells what is woven is.
        """
        middle = torch.arange(scale * self.side) + 0.5
        weights = torch.ones(scale * self.side)
        if place > 0:
            shared = scale * (starts[place - 1] + self.side - starts[place])
            weights = torch.minimum(weights, middle / max(shared, 1))
        if place + 1 < len(starts):
            shared = scale * (starts[place] + self.side - starts[place + 1])
            weights = torch.minimum(weights, (scale * self.side - middle) / max(shared, 1))
        return weights


def woven(tiles: Tiles, compute: Callable[[list[Corner]], Tensor], scale: int = 1) -> Iterator[Tensor]:
    """The canvas [C, scale * height, scale * width] from top to bottom, in bands that are done: few rows are held.

    compute: corners (row, column) of one row of squares -> what they are, [T, C, scale * side, scale * side].
    """
    held, weights = None, None
    for place, row in enumerate(tiles.rows):
        strip = _side_by_side(tiles, compute([(row, column) for column in tiles.columns]), scale)
        ramp = tiles.ramp(tiles.rows, place, scale).to(strip)
        strip *= ramp[:, None]
        if held is not None and weights is not None:
            done = scale * (row - tiles.rows[place - 1])
            yield held[:, :done] / weights[:done, None]
            strip[:, :-done] += held[:, done:]
            ramp[:-done] += weights[done:]
        held, weights = strip, ramp
    assert held is not None and weights is not None
    yield held / weights[:, None]


def _side_by_side(tiles: Tiles, squares: Tensor, scale: int) -> Tensor:
    """One row of squares [T, C, s, s] as a strip [C, s, scale * width]."""
    side = scale * tiles.side
    strip = squares.new_zeros(squares.shape[1], side, scale * tiles.width)
    weights = squares.new_zeros(scale * tiles.width)
    for place, (column, square) in enumerate(zip(tiles.columns, squares, strict=True)):
        ramp = tiles.ramp(tiles.columns, place, scale).to(squares)
        strip[:, :, scale * column : scale * column + side] += square * ramp
        weights[scale * column : scale * column + side] += ramp
    return strip / weights


def cut(canvas: Tensor, corners: Sequence[Corner], side: int) -> Tensor:
    """Squares [T, C, side, side] of a canvas [C, H, W]."""
    return torch.stack([canvas[:, row : row + side, column : column + side] for row, column in corners])


class Tiled:
    """A network on one canvas, with its condition [C', H, W] beside x, that sees squares, `batch` of them a call.

    done: called after each evaluation of the canvas.
    """

    def __init__(
        self,
        network: Network | BindingNetwork,
        condition: Tensor,
        tiles: Tiles,
        batch: int,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self.network, self.condition, self.tiles, self.batch, self.done = network, condition, tiles, batch, done

    def bind(self, context: Tensor, rows_per_image: int) -> Predict:
        """For a single canvas under a single context [1, L, D]. Raises `SpecError` for more: tiles are not guided."""
        if rows_per_image != 1 or len(context) != 1:
            raise SpecError("an image in tiles is not guided, and is made alone: use guidance scale 1.")
        predict = bound(self.network, context.repeat(self.batch, 1, 1), 1)
        side = self.tiles.side

        def predict_canvas(x: Tensor, t: int) -> Tensor:
            canvas = torch.cat([x[0], self.condition])

            def compute(corners: list[Corner]) -> Tensor:
                padded = [*corners, *corners[:1] * (-len(corners) % self.batch)]
                squares = cut(canvas, padded, side).split(self.batch)
                return torch.cat([predict(part, t) for part in squares])[: len(corners)]

            output = torch.cat(list(woven(self.tiles, compute)), dim=1)[None]
            self.done()
            return output

        return predict_canvas
