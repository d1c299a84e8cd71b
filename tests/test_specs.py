from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from isocost import specs
from isocost.errors import SpecError, lookup
from isocost.specs import (
    SCHEMA,
    CheckpointRef,
    DataSource,
    DataSpec,
    EngineSpec,
    Grid,
    Guidance,
    ModelSpec,
    NoiseSchedule,
    Optimizer,
    PromptSet,
    SampleKey,
    SamplingPlan,
    ScoreSpec,
    Spec,
    Stage,
    StudySpec,
    TrainSettings,
    TrainSpec,
    canonical_json,
    digest_of,
    load,
)

MODEL = ModelSpec(family="micro", width=64, context_dim=64)
CHECKPOINT = CheckpointRef(content_digest="ab" * 32, images_seen=1024)
PLAN = SamplingPlan(
    stages=(Stage(checkpoint=CHECKPOINT),),
    schedule=NoiseSchedule(),
    prediction="v_prediction",
    sampler="ddim",
    steps=20,
    guidance=Guidance(scale=7.5),
)
TRAIN = TrainSettings(images=1024, batch=64, caption_dropout=0.1)
DATA = DataSpec(
    digest_of_shards="cd" * 32,
    images=1024,
    resolution=32,
    latent_shape=(4, 8, 8),
    context_shape=(32, 64),
    autoencoder="ef" * 32,
    text_encoder="01" * 32,
)
SAMPLE_KEY = SampleKey(
    plan=PLAN,
    promptset=PromptSet(name="scenes-val", digest_of_prompts="23" * 32),
    latent_shape=(4, 8, 8),
    engine=EngineSpec(),
)
STUDY = StudySpec(name="tiny", data=DataSource(images=1024), members=(MODEL,), train=TRAIN)

# A store is addressed by these. A change here makes every store made before unreadable: instead, list a new field in
# its class's NEUTRAL with the value that means "as before".
GOLDEN: dict[str, tuple[Spec, str]] = {
    "model": (MODEL, "2c44ce6ba7aa847c5f135e54bbb93381c93b92aac29418f5184c4235438ce23c"),
    "schedule": (NoiseSchedule(), "0bbda6e7e6c2ed0510054c1c271c9f3c861a9c42887f934e9a9480ed0b0afc70"),
    "guidance": (Guidance(scale=7.5), "b15a12049dde6088dc93fa1673cc4db1e09da793e75a24f8d6bed69dfc9482fe"),
    "plan": (PLAN, "9bd76a90108a96cba2eac4dec8addcf36aca8e941c141f3b4f646bb13e69abb1"),
    "grid": (
        Grid(steps=(1, 2), guidance=(1.0, 2.0)),
        "a753707debf18eacace8bb133bbbd750fde7eaeb09c50f3a0372394323272217",
    ),
    "grid_spacing": (
        Grid(samplers=("dpmpp_2m",), spacing="leading"),
        "b22d56c1168ae02e95e0794807af307779e590fc6aeb878c6e48cffc8586df96",
    ),
    "train": (
        TrainSpec(**dict(TRAIN), model=MODEL, data=DATA),
        "de8fb60cd02e58fbaf4821c6e1492206dfad2203c191acbb9bb79a25bb834e0c",
    ),
    "sample_key": (SAMPLE_KEY, "c1502e69afd8e5af253dc45c87358a3f12705eca3c7caafce659ae46c8dcfc93"),
    "score": (
        ScoreSpec(metric="fd", extractor="scenes-clip-score@45", n=512),
        "1449daf119daf1ab35b9f53afdc2abe052f6b5388809630ee480b061fbfa0912",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digests(name: str):
    spec, digest = GOLDEN[name]
    assert spec.digest == digest


@pytest.mark.parametrize("spec", [*(spec for spec, _ in GOLDEN.values()), STUDY], ids=[*GOLDEN, "study"])
def test_canonical_text_is_the_json_of_the_canonical_fields(spec: Spec):
    assert spec.canonical_text == canonical_json(spec.canonical())
    assert spec.digest == digest_of({"type": type(spec).__name__, "schema": SCHEMA, **spec.canonical()})


def test_a_copy_with_another_value_has_a_text_of_its_own():
    assert SAMPLE_KEY.canonical_text  # kept from here on, in its parts too
    plan = PLAN.model_copy(update={"guidance": PLAN.guidance.model_copy(update={"scale": 3.5})})
    changed = SAMPLE_KEY.model_copy(update={"plan": plan})
    assert changed.canonical_text == canonical_json(changed.canonical()) != SAMPLE_KEY.canonical_text
    negative = Guidance(scale=-0.0)
    assert (Guidance(scale=0.0).canonical_text, negative.canonical_text) == tuple(
        canonical_json(one.canonical()) for one in (Guidance(scale=0.0), negative)
    )


def test_the_digest_covers_type_and_every_field():
    class Twin(ModelSpec):
        pass

    digests = {
        MODEL.digest,
        Twin(**dict(MODEL)).digest,
        MODEL.model_copy(update={"width": 65}).digest,
        MODEL.model_copy(update={"num_heads": 4}).digest,
        MODEL.model_copy(update={"in_channels": 7}).digest,
    }
    assert len(digests) == 5


def test_a_nested_change_moves_the_digest():
    other = PLAN.model_copy(update={"guidance": Guidance(scale=7.6)})
    assert other.digest != PLAN.digest


def test_the_digest_ignores_how_a_value_was_written():
    assert Guidance.parse({"scale": 3}).digest == Guidance(scale=3.0).digest
    assert Grid.parse({"steps": [1, 2]}).digest == Grid(steps=(1, 2)).digest


def test_a_neutral_field_stays_out_of_the_digest_until_it_is_used():
    class Before(Spec):
        scale: float = 1.0

    class After(Spec):
        NEUTRAL: ClassVar[dict[str, Any]] = {"interval": None}
        scale: float = 1.0
        interval: tuple[int, int] | None = None

    Before.__name__ = After.__name__ = "Same"
    assert After(scale=2.0).digest == Before(scale=2.0).digest
    assert After(scale=2.0, interval=(1, 9)).digest != Before(scale=2.0).digest


def spec_classes() -> list[type[Spec]]:
    return [value for value in vars(specs).values() if isinstance(value, type) and issubclass(value, Spec)]


@pytest.mark.parametrize("cls", spec_classes(), ids=lambda cls: cls.__name__)
def test_neutral_values_are_the_defaults_of_real_fields(cls: type[Spec]):
    for name, value in cls.NEUTRAL.items():
        assert cls.model_fields[name].default == value


def test_canonical_json_is_sorted_compact_and_refuses_nan():
    assert canonical_json({"b": 0.1, "a": [1, "é"]}) == '{"a":[1,"é"],"b":0.1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


@pytest.mark.parametrize("spec", [PLAN, SAMPLE_KEY, STUDY, GOLDEN["train"][0]], ids=lambda spec: type(spec).__name__)
def test_yaml_and_json_round_trip(spec: Spec):
    assert type(spec).from_yaml(spec.to_yaml()) == spec
    assert type(spec).from_yaml(spec.model_dump_json()) == spec


@given(
    scale=st.floats(0, 1e6, allow_subnormal=False),
    interval=st.none() | st.tuples(st.integers(0, 999), st.integers(0, 999)),
)
def test_any_number_survives_yaml(scale: float, interval: tuple[int, int] | None):
    spec = Guidance(scale=scale, interval=interval and tuple(sorted(interval)))
    again = Guidance.from_yaml(spec.to_yaml())
    assert again == spec
    assert again.digest == spec.digest


def test_specs_are_frozen_and_hashable():
    with pytest.raises(ValidationError, match="frozen"):
        MODEL.width = 32
    assert len({MODEL, ModelSpec(**dict(MODEL)), PLAN}) == 2


@pytest.mark.parametrize(
    ("cls", "text", "message"),
    [
        (Grid, "step: [4]", "study.yaml: step: unknown field. Did you mean 'steps'?"),
        (Guidance, "scale: -1", "study.yaml: scale: Input should be greater than or equal to 0 (found -1)"),
        (
            NoiseSchedule,
            "kind: cosine",
            "study.yaml: kind: Input should be 'scaled_linear', 'linear', 'squaredcos_cap_v2' or 'flow' (found",
        ),
        (DataSource, "kind: scenes", "scenes are endless: say how many images to draw in `images`"),
        (DataSource, "kind: images", "kind 'images' needs `train`"),
        (Grid, "{guidance: [0.5, 2], mode: cfg++}", "scale 2 is cfg++'s lambda, which goes from 0 to 1"),
        (Grid, "guide: c8", "`guide` is the weaker checkpoint of mode 'autoguidance': give both, or neither"),
        (Grid, "{mode: autoguidance, guide: c8, members: [c8, c16]}", "guide c8 would guide itself"),
        (Grid, "{mode: autoguidance, guide: c8, stitch: {first: c8, then: c16}}", "guide c8 would guide itself"),
        (Grid, "{members: [c8], stitch: {first: c8, then: c16}}", "leave `members` out"),
        (Grid, "stitch: {first: c8, then: c8}", "`first` and `then` are both c8"),
        (Grid, "stitch: {first: c8, then: c16, shares: [1.5]}", "less than or equal to 1"),
        (Grid, "interval: [800, 200]", "interval [800, 200] is empty"),
        (Grid, "best_of: [0]", "greater than or equal to 1"),
        (Guidance, "- 1", "study.yaml: expected fields of Guidance, found list."),
        (Guidance, "", "study.yaml: expected fields of Guidance, found NoneType."),
        (Guidance, "scale: [1", "study.yaml: not YAML: while parsing a flow sequence"),
        (Grid, "steps: [4, 4]", "study.yaml: steps: needs one value or more, each once"),
    ],
)
def test_errors_say_where_and_what_in_one_line(cls: type[Spec], text: str, message: str):
    with pytest.raises(SpecError) as caught:
        cls.from_yaml(text, where="study.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        (("grid", "sampler"), "samplers"),
        (("train", "optimizer", "learning_rate"), None),
        (("train", "ema", "halflife"), "halflife_images"),
        (("data", "scenes", "group"), "groups"),
        (("members", 0, "widht"), "width"),
    ],
)
def test_an_unknown_nested_field_is_named_with_its_path(path: tuple[str | int, ...], nearest: str | None):
    value: Any = STUDY.model_dump(mode="json")
    owner = value
    for part in path[:-1]:
        owner = owner[part]
    owner[path[-1]] = 1
    with pytest.raises(SpecError) as caught:
        StudySpec.parse(value, "study.yaml")
    message = str(caught.value)
    assert message.startswith(f"study.yaml: {'.'.join(map(str, path))}: unknown field.")
    assert (f"Did you mean '{nearest}'?" if nearest else "Known: ") in message


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(SpecError, match=r"^unknown sampler 'dimm'\. Did you mean 'ddim'\?$"):
        lookup({"ddim": 1, "euler": 2}, "dimm", "sampler")
    with pytest.raises(SpecError, match=r"^unknown sampler 'zzz'\. Known: ddim, euler\.$"):
        lookup({"ddim": 1, "euler": 2}, "zzz", "sampler")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 1000}, "images 1000 is not a multiple of batch 64"),
        ({"accumulation": 3}, "batch 64 is not a multiple of accumulation 3"),
        ({"checkpoints": [100]}, "checkpoints: 100 is not a multiple of batch 64 up to 1024"),
        ({"checkpoints": [2048]}, "checkpoints: 2048 is not a multiple of batch 64 up to 1024"),
    ],
)
def test_counts_of_images_must_divide(change: dict[str, Any], message: str):
    with pytest.raises(SpecError) as caught:
        TrainSettings.parse({**TRAIN.model_dump(mode="json"), **change})
    assert message in str(caught.value)


def test_load_reads_a_file_and_names_a_missing_one(tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.to_yaml())
    assert load(path, StudySpec) == STUDY
    with pytest.raises(SpecError, match=r"missing\.yaml: No such file or directory$"):
        load(tmp_path / "missing.yaml", StudySpec)


def test_flow_and_rate_rules_leave_old_digests_alone():
    for spec, fields in (
        (NoiseSchedule(), {"shift": 1.0}),
        (TRAIN, {"timesteps": "uniform"}),
        (Optimizer(), {"lr_scaling": "constant", "base_width": None}),
    ):
        assert not fields.keys() & spec.canonical().keys()
        assert spec.model_copy(update=fields).digest == spec.digest
    assert NoiseSchedule(kind="flow").digest != NoiseSchedule(kind="flow", shift=3).digest
    assert TRAIN.model_copy(update={"timesteps": "logit_normal"}).digest != TRAIN.digest


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (NoiseSchedule, {"shift": 2}, "shift 2 is of kind 'flow' only"),
        (NoiseSchedule, {"kind": "flow", "zero_terminal_snr": True}, "ends in pure noise as it is"),
        (TrainSettings, {"schedule": {"kind": "flow"}}, "goes with prediction 'flow' or 'sample', not v_prediction"),
        (TrainSettings, {"timesteps": "normal"}, "timesteps"),
    ],
)
def test_a_flow_is_not_a_schedule_of_betas(cls, fields, message):
    needed = {"images": 8, "batch": 8, "caption_dropout": 0.1} if cls is TrainSettings else {}
    with pytest.raises(SpecError, match=message):
        cls.parse(needed | fields)
