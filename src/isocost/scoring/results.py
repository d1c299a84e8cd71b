"""What scoring gives: estimates with what they are of, as a table, and a ranking where several sets were scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isocost.errors import SpecError, did_you_mean
from isocost.scoring.uncertainty import Difference, Estimate, independent_difference, paired_difference

if TYPE_CHECKING:
    import pandas as pd

TIE = 0.95  # below this probability that the best one is better, they tie


@dataclass(frozen=True, eq=False)
class Scored:
    """One estimate of one set of images.

    `metric`: with its extractor, `fd[fid-tf]`. `extractor`: name@digest, "" for metrics of pixels. `reference`: its
    digest, None where the metric needs none. `protocol`: how the reference was chosen, "" where that has no name.
    `keys`: one an image in the order of `estimate.influence`, () where unknown.
    """

    generated: str
    metric: str
    estimate: Estimate
    extractor: str = ""
    reference: str | None = None
    reference_n: int | None = None
    protocol: str = ""
    keys: tuple[str, ...] = ()

    def as_row(self) -> dict[str, Any]:
        """A row of the table; `value` is less its bias where that is known, `plug_in` the number before."""
        estimate = self.estimate
        low, high = estimate.interval()
        return {
            "generated": self.generated,
            "metric": self.metric,
            "value": estimate.corrected,
            "stderr": estimate.stderr,
            "low": low,
            "high": high,
            "plug_in": estimate.value,
            "bias": estimate.bias,
            "n": estimate.n,
            "reference_n": self.reference_n,
            "better": "higher" if estimate.higher_is_better else "lower",
            "unit": estimate.unit,
            "valid": estimate.valid,
            "protocol": self.protocol,
            "reference": self.reference,
            "extractor": self.extractor,
        }


@dataclass(frozen=True)
class Place:
    """A set's place by one metric. `behind`: its difference to the best set, which beats it with `probability`; both
    None for the best itself. `paired`: whether that was judged image by image. `tie`: the probability is below 0.95.
    """

    metric: str
    place: int
    generated: str
    value: float
    behind: float | None = None
    stderr: float | None = None
    probability: float | None = None
    paired: bool | None = None
    tie: bool = False
    sentence: str = ""


@dataclass(frozen=True, eq=False)
class Scores:
    """What `isocost.score` returns: `table`, `ranking`, and the estimates themselves by metric and set.

    `notices`: what was converted, left out, cut or taken on trust, in sentences. `paired`: whether sets are compared
    image by image; None: where their keys match.
    """

    scored: tuple[Scored, ...]
    notices: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    paired: bool | None = None

    @property
    def table(self) -> pd.DataFrame:
        """One row a set and metric: value, stderr, 95% interval (low, high), n, and what it is a score of."""
        import pandas as pd

        return pd.DataFrame([scored.as_row() for scored in self.scored])

    @property
    def names(self) -> tuple[str, ...]:
        """The sets that were scored."""
        return tuple(dict.fromkeys(scored.generated for scored in self.scored))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, with their extractors."""
        return tuple(dict.fromkeys(scored.metric for scored in self.scored))

    def estimate(self, metric: str, generated: str | None = None) -> Estimate:
        """The Estimate of a metric (`fd` will do where it is `fd[fid-tf]` alone) of a set (where there are several).

        Raises `SpecError` where no score, or more than one, is meant.
        """
        return self._find(metric, generated).estimate

    def difference(self, metric: str, a: str, b: str) -> Difference:
        """A - B by a metric, paired where `paired` says so."""
        return _difference(self._find(metric, a), self._find(metric, b), self.paired)[0]

    def _find(self, metric: str, generated: str | None) -> Scored:
        found = [
            scored
            for scored in self.scored
            if metric in (scored.metric, scored.metric.partition("[")[0]) and generated in (None, scored.generated)
        ]
        if not found:
            known = did_you_mean(metric, self.metrics)
            raise SpecError(f"no score of '{metric}'{f' of {generated}' if generated else ''}.{known}")
        if len(found) > 1:
            listed = ", ".join(f"{scored.metric} of {scored.generated}" for scored in found)
            raise SpecError(f"'{metric}' could be {listed}: say which.")
        return found[0]

    @property
    def ranking(self) -> tuple[Place, ...]:
        """By each metric the sets from best to worst, with what the best one has over each; () for one set."""
        if len(self.names) < 2:
            return ()
        return tuple(place for metric in self.metrics for place in self._ranked(metric))

    def _ranked(self, metric: str) -> list[Place]:
        found = [scored for scored in self.scored if scored.metric == metric]
        unbiased = all(scored.estimate.bias is not None for scored in found)

        def value(scored: Scored) -> float:
            return scored.estimate.corrected if unbiased else scored.estimate.value

        best, *others = sorted(found, key=value, reverse=found[0].estimate.higher_is_better)
        behind = [_behind(best, other, value(other), place, self.paired) for place, other in enumerate(others, 2)]
        return [Place(metric, 1, best.generated, value(best)), *behind]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "scores": [scored.as_row() for scored in self.scored],
            "ranking": [vars(place) for place in self.ranking],
            "notices": list(self.notices),
            "environment": dict(self.environment),
        }

    def _repr_html_(self) -> str:
        """What a notebook shows: the table, the ranking in sentences, and the notices."""
        from html import escape

        lines = [place.sentence for place in self.ranking if place.sentence] + list(self.notices)
        shown = self.table.drop(columns=["reference"]).to_html(index=False, float_format="{:.4g}".format)
        return shown + "".join(f"<p>{escape(line)}</p>" for line in lines)


def _behind(best: Scored, other: Scored, value: float, place: int, paired: bool | None) -> Place:
    """The place of a set that is not the best, and what it lacks of that."""
    difference, paired = _difference(best, other, paired)
    how, tie = "paired" if paired else "independent", difference.probability < TIE
    if tie:
        likelier = f"{best.generated} is better with probability {difference.probability:.2f}"
        sentence = f"{best.metric}: {best.generated} and {other.generated} tie; {likelier} ({how})."
    else:
        sentence = f"{best.metric}: {difference.sentence(best.generated, other.generated)} ({how})."
    return Place(
        metric=best.metric,
        place=place,
        generated=other.generated,
        value=value,
        behind=-difference.value,
        stderr=difference.stderr,
        probability=difference.probability,
        paired=paired,
        tie=tie,
        sentence=sentence,
    )


def _difference(a: Scored, b: Scored, paired: bool | None) -> tuple[Difference, bool]:
    """A - B and whether it is paired: as told, or where both have the same keys in the same order."""
    if paired is None:
        paired = bool(a.keys) and a.keys == b.keys and a.estimate.influence is not None
    both = paired_difference if paired else independent_difference
    return both(a.estimate, b.estimate), paired
