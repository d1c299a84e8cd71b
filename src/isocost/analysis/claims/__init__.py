"""The paper's claims as executable checks: results tables in, a verdict on each out (docs/claims.md)."""

from isocost.analysis.claims.catalogue import CLAIMS, Claim
from isocost.analysis.claims.judge import Judgement, Study, judge, judge_all
from isocost.analysis.claims.printed import Contradiction, contradictions, printed, printed_table
from isocost.analysis.claims.verdict import Verdict

__all__ = [
    "CLAIMS",
    "Claim",
    "Contradiction",
    "Judgement",
    "Study",
    "Verdict",
    "contradictions",
    "judge",
    "judge_all",
    "printed",
    "printed_table",
]
