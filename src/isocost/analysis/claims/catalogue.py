"""Every claim of the paper (arXiv 2404.01367), by id: what it says in our words, and the test of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isocost.analysis.claims import distillation, downstream, pretraining, sampling
from isocost.analysis.claims.hypotheses import Hypothesis


@dataclass(frozen=True)
class Claim:
    """`statement`: what is claimed, in our words. `test`: a table's sheet to a hypothesis; raises `Missing`.

    `together`: of several tables the test takes all sheets at once, as it compares what one study did with another.
    """

    statement: str
    test: Callable[..., Hypothesis]
    together: bool = False


CLAIMS: dict[str, Claim] = {
    "C1": Claim("moderate training improves FID and CLIP score at every size", pretraining.improves_with_compute),
    "C2": Claim("training has stabilised at 200K of 500K iterations", pretraining.stable_after),
    "C3": Claim("the final FID falls with size", pretraining.falls_with_size),
    "C3b": Claim("the CLIP score flattens from 430M on (our reading of Table 1)", pretraining.clip_flattens),
    "C4": Claim("images look better with size, the smallest excepted", pretraining.looks_better_with_size),
    "C5": Claim("quality after pretraining predicts quality downstream", downstream.pretraining_predicts, True),
    "C6": Claim("super-resolution FID depends more on size than on compute", downstream.size_drives_fd),
    "C7": Claim("super-resolution LPIPS depends more on compute than on size", downstream.compute_drives_lpips),
    "C8": Claim("a large model tuned briefly beats a small one tuned long", downstream.brief_large_beats_long_small),
    "C9": Claim("super-resolution IS follows size as FID does", downstream.inception_score_follows),
    "C10": Claim("DreamBooth quality rises with size", downstream.dreambooth_improves),
    "C11": Claim("the guidance rate moves FID more than CLIP score", sampling.guidance_moves_fd_more),
    "C12": Claim("the best guidance rate differs by size and by steps", sampling.best_guidance_differs),
    "C13": Claim("at a small sampling cost the smaller model has the better FID", sampling.smaller_wins_when_tight),
    "C13b": Claim("83M is the best at a cost of 3", sampling.small_member_is_best),
    "C14": Claim("larger models overtake as the budget is relaxed", sampling.larger_overtakes),
    "C15": Claim("C13 holds under DDPM and DPM-Solver++", sampling.under_other_samplers),
    "C16": Claim("DDPM is worse than DDIM at few steps", sampling.ddpm_is_worse),
    "C17": Claim("DPM-Solver++ is better than DDIM up to 20 steps", sampling.dpm_solver_is_better),
    "C18": Claim("more than 50 steps buy nothing", sampling.many_steps_buy_nothing),
    "C19": Claim("super-resolution: small models win up to 20 steps", sampling.small_wins_in_superres),
    "C20": Claim("super-resolution: large models win beyond 20 steps", sampling.large_wins_in_superres),
    "C20b": Claim("super-resolution: gaps between sizes shrink with steps", sampling.gaps_shrink),
    "C21": Claim("consistency distillation lowers 4-step FID at every size", distillation.lowers_fd),
    "C21b": Claim("distillation beats as much plain training (ours)", distillation.more_than_training_on, True),
    "C22": Claim("distilled models beat undistilled ones at equal cost", distillation.beats_undistilled),
    "C23": Claim("the speed-up by distillation is about 5x at every size", distillation.speeds_up_alike),
    "C24": Claim("distilled 866M equals undistilled 83M at a cost of 7 to 8", distillation.reference_equals_small),
    "C25": Claim("four steps are the distilled models' best", distillation.four_steps_are_best),
    "C26": Claim("what guided distillation gains differs between sizes", distillation.guided_gain_differs),
    "C27": Claim("interpolations are more coherent with size", downstream.interpolations_cohere),
}  # fmt: skip
