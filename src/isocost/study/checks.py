"""Whether a study's checkpoints can serve its grids, found out before any of them is trained."""

from __future__ import annotations

from pathlib import Path

from isocost.diffusion.samplers import SAMPLERS
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.own import latent_shape
from isocost.encoders.text import load_text_encoder
from isocost.errors import SpecError, lookup
from isocost.models.cost import parameters
from isocost.sampling.checkpoints import Traits, check_checkpoints
from isocost.sampling.folders import open_folder
from isocost.specs import CheckpointRef, Grid, ModelSpec, StudySpec
from isocost.study.artifacts import given_checkpoint
from isocost.study.grid import Scorer, StudyCheckpoint, check_names, plans
from isocost.study.pipelines import open_scorer, scoring_grids
from isocost.training.objectives import TAKE_IMAGES


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
    for grid in scoring_grids(study):
        _check_scorer(study, grid)
    expected = {checkpoint.name: checkpoint for checkpoint in _expected(study)}
    traits = {name: checkpoint.traits for name, checkpoint in expected.items()}
    trained = [model.name for model in study.members]
    wanted = [(grid, list(expected)) for grid in study.grids]
    wanted += [(study.curve, trained)] if study.curve is not None else []
    for grid, names in wanted:
        for sampler in grid.samplers:
            lookup(SAMPLERS, sampler, "sampler")
        scorers = {grid.scorer: Scorer(grid.scorer, grid.scorer)}
        for planned in plans(_thinned(grid), expected, names, scorers):
            check_checkpoints(planned.plan, traits)


def _check_takes_image(study: StudySpec, model: ModelSpec) -> None:
    assert study.train is not None
    if model.takes_image != (study.train.objective in TAKE_IMAGES):
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


def _expected(study: StudySpec) -> list[StudyCheckpoint]:
    """Stand-ins for the study's checkpoints, with the traits that they will have and their names for content."""
    given = [given_checkpoint(name, open_folder(folder), _named(name)) for name, folder in study.given.items()]
    if not study.members:
        return given
    traits = _traits_of_members(study)
    return [
        StudyCheckpoint(
            name=model.name,
            model=model,
            seed=study.seeds[0],
            ref=_named(model.name),
            traits=traits,
            folder=Path(model.name),
            autoencoder=study.data.autoencoder,
            text_encoder=study.data.text_encoder,
        )
        for model in study.members
    ] + given


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
        takes_image=train.objective in TAKE_IMAGES,
    )
