"""The paper's claims as executable checks: a results table in, a verdict on each out (docs/claims.md)."""

from isocost.analysis.claims.catalogue import CLAIMS, Claim
from isocost.analysis.claims.judge import Judgement, judge
from isocost.analysis.claims.printed import Contradiction, contradictions, printed, printed_table
from isocost.analysis.claims.verdict import Verdict

__all__ = [
    "CLAIMS",
    "Claim",
    "Contradiction",
    "Judgement",
    "Verdict",
    "contradictions",
    "judge",
    "printed",
    "printed_table",
]
