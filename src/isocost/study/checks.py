"""Whether a study's checkpoints can serve its grids, found out before any of them is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from isocost.diffusion.samplers import SAMPLERS
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.own import latent_shape
from isocost.encoders.text import load_text_encoder
from isocost.errors import SpecError, lookup
from isocost.models.cost import parameters
from isocost.sampling.checkpoints import Traits, check_checkpoints
from isocost.sampling.folders import open_folder
from isocost.scoring.measures import ALIASES
from isocost.scoring.metrics import METRICS
from isocost.specs import CheckpointRef, Grid, ModelSpec, StudySpec, split_metric
from isocost.study.artifacts import given_checkpoint, prompts_of
from isocost.study.grid import Scorer, StudyCheckpoint, check_names, plans
from isocost.study.pipelines import open_scorer, scoring_grids
from isocost.training.teachers import check_embeds


def check_checkpoints_of(study: StudySpec) -> None:
    """Refuse grids that the study's checkpoints, trained or given, cannot serve.

    Raises:
        SpecError: an unknown family, member, sampler or scorer, two members of one name, more steps than timesteps,
            guidance that training rules out, or checkpoints that cannot share a trajectory.
        DataError: a given checkpoint's configs are missing or unfit.
    """
    check_names(study)
    for model in study.members:
        parameters(model)
        _check_takes_image(study, model)
        check_embeds(model.guidance_dim, study.train)
    for grid in scoring_grids(study):
        _check_scorer(study, grid)
    trained = [model.name for model in study.members]
    wanted = [(grid, _expected(study, grid.undistilled), None) for grid in study.grids]
    wanted += [(study.curve, _expected(study), trained)] if study.curve is not None else []
    for grid, stand_ins, names in wanted:
        expected = {checkpoint.name: checkpoint for checkpoint in stand_ins}
        traits = {name: checkpoint.traits for name, checkpoint in expected.items()}
        for sampler in grid.samplers:
            lookup(SAMPLERS, sampler, "sampler")
        scorers = {grid.scorer: Scorer(grid.scorer, grid.scorer)}
        for planned in plans(_thinned(grid), expected, names or list(expected), scorers):
            check_checkpoints(planned.plan, traits)


def check_ways(study: StudySpec) -> None:
    """Raise `SpecError` for metrics of one caption on images between two, or the other way round, and for best-of-n,
    which keeps the image that is closest to its one caption."""
    between = study.evaluation.between is not None
    for name in study.evaluation.metrics:
        family = split_metric(name)[0]
        needs = set(lookup(METRICS, ALIASES.get(family, family), "metric").needs)
        if "places" in needs and not between:
            raise SpecError(f"evaluation.metrics: '{name}' is of images between two captions: set evaluation.between.")
        if between and needs & {"text_features", "wanted"}:
            raise SpecError(
                f"evaluation.metrics: '{name}' asks for an image's one caption, and with evaluation.between it has two:"
                " 'coherence' and 'attribute-coherence' go by both."
            )
        if "ends_wanted" in needs and not prompts_of(study.evaluation.prompts, study.data).at(0)[0].attributes:
            raise SpecError(
                f"evaluation.metrics: nothing says what images of '{study.evaluation.prompts}' must show, so '{name}' "
                "cannot be judged: leave it out, or use prompts 'scenes-val'."
            )
    if between and scoring_grids(study):
        raise SpecError("evaluation.between: best_of keeps the image closest to its one caption, and these have two.")


def _check_takes_image(study: StudySpec, model: ModelSpec) -> None:
    assert study.train is not None
    if model.takes_image != (study.data.degradation is not None):
        raise SpecError(
            f"members: {model.name} has {model.in_channels} channels in and {model.out_channels} out: with objective "
            "'superres', and with no other, it takes twice as many in as out."
        )


def _thinned(grid: Grid) -> Grid:
    """The same grid at one scale, an active one where it has one: whether a plan can run hangs on no other."""
    acts = [scale for scale in grid.guidance if scale != 1 or grid.mode == "cfg++"]
    return grid.model_copy(update={"guidance": (acts or grid.guidance)[:1], "best_of": (1,)})


def _check_scorer(study: StudySpec, grid: Grid) -> None:
    if grid.scorer != "own":
        open_scorer(grid.scorer)
    elif study.evaluation.extractor != "own":
        raise SpecError("scorer 'own' is the extractor that a study trains: set evaluation.extractor to 'own' too.")


def _expected(study: StudySpec, undistilled: bool = False) -> list[StudyCheckpoint]:
    """Stand-ins for the study's checkpoints, with the traits that they will have and their names for content.

    undistilled: for what members were before, of which not all is known yet.
    """
    given = [given_checkpoint(name, open_folder(folder), _named(name)) for name, folder in study.given.items()]
    if not study.members:
        return given
    traits = _traits_of_members(study)
    before = replace(traits, objective="denoise", caption_dropout=None, rounds_to=None, between=False)
    return [
        StudyCheckpoint(
            name=model.name,
            model=model,
            seed=study.seeds[0],
            ref=_named(model.name),
            traits=before if undistilled else replace(traits, embeds_guidance=model.guidance_dim is not None),
            folder=Path(model.name),
            autoencoder=study.data.autoencoder,
            text_encoder=study.data.text_encoder,
        )
        for model in study.members
    ] + ([] if undistilled else given)


def _named(name: str) -> CheckpointRef:
    return CheckpointRef(content_digest=name, images_seen=0)


def _traits_of_members(study: StudySpec) -> Traits:
    data, train = study.data, study.train
    assert train is not None
    autoencoder = None if data.autoencoder == "own" else load_autoencoder(data.autoencoder)
    return Traits(
        schedule=train.schedule,
        prediction=train.prediction,
        latent_shape=autoencoder.latent_shape(data.resolution) if autoencoder else latent_shape(data),
        autoencoder=autoencoder.digest if autoencoder else "own",
        text_encoder="own" if data.text_encoder == "own" else load_text_encoder(data.text_encoder).digest,
        caption_dropout=train.caption_dropout,
        takes_image=study.data.degradation is not None,
        objective=train.objective,
        rounds_to=train.guided.steps if train.guided else None,
        between=train.guided.stochastic if train.guided else False,
    )
