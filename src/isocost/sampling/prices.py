"""What an image takes as the sum of its parts: arithmetic on what was timed, for whoever reads it without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isocost.specs import Spec

Parts = Mapping[str, float]
"""Of an image each: `text`, `noise` (a draw), `start/R` and `call/R` (R rows an image: 2 = guided), and `decode`."""
Call = tuple[str, int, int]
"""Content digest of a checkpoint, rows an image, and how many such calls a plan makes."""


class Whole(Spec):
    """Seconds an image of a whole plan of one call a step: as run, and as the sum of its parts."""

    steps: int
    guidance: float
    measured: float
    modelled: float

    @property
    def error(self) -> float:
        """Of the sum, relative to the run."""
        return self.modelled / self.measured - 1


def image_price(parts: Mapping[str, Parts], calls: Sequence[Call], noises: int, candidates: int = 1) -> float:
    """Seconds (or joules) of an image: the parts of every checkpoint, by content digest, as often as a plan asks.

    Text encoder, noise and decoder are taken from the first checkpoint's parts: checkpoints of one plan share them.
    The prompt is embedded once for all `candidates` of best-of-n; who chooses among them is not in this.
    """
    shared = parts[calls[0][0]]
    networks = sum(parts[who][f"start/{rows}"] + count * parts[who][f"call/{rows}"] for who, rows, count in calls)
    return shared["text"] + candidates * (noises * shared["noise"] + networks + shared["decode"])
