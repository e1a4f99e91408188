from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from byoc_server.batching.collate import RowCollation
from byoc_server.batching.lengths import PaddedCollation, PaddedInput
from byoc_server.batching.profile import BatchProfile
from byoc_server.engines.base import EngineOptions
from byoc_server.engines.onnx import open_model
from byoc_server.errors import GpuUnavailable, ModelLoadError
from byoc_server.models.model import load_model
from byoc_server.models.padding import find_padded_inputs, padded_collation, positions_of_a_run
from byoc_server.models.signature import find_signature
from byoc_server.types import BatchAxis, Signature, Tensors, TensorSpec
from tests.codecs.signatures import ABSENT, spec
from tests.onnx_models import encoder

IDS = spec("input_ids", "int64", (None, None))
MASK = spec("attention_mask", "int64", (None, None))
TYPES = spec("token_type_ids", "int64", (None, None))
FEATURES = spec("features", "float32", (None, None, 3))
Y = spec("y", "float32", (None, None))
PROFILE = BatchProfile(((1, 0.004), (8, 0.016)))


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs, (Y,))


@pytest.mark.parametrize("inputs", [(IDS, MASK), (MASK, TYPES, IDS)])
def test_the_usual_signature_of_an_encoder_is_padded_with_zeros(inputs: tuple[TensorSpec, ...]) -> None:
    assert find_padded_inputs(signature(*inputs), {}) == {spec.name: PaddedInput(1, 0) for spec in inputs}


@pytest.mark.parametrize(
    "inputs",
    [
        (IDS,),
        (IDS, TYPES),
        (IDS, MASK, spec("position_ids", "int64", (None, None))),
        (IDS, spec("attention_mask", "float32", (None, None))),
        (IDS, spec("attention_mask", "int64", (None, None, None))),
        (spec("input_ids", "int64", (None, 128)), MASK),
        (spec("input_ids", "string", (None, None)), MASK),
        (FEATURES,),
    ],
)
def test_nothing_else_is_padded_without_being_told(inputs: tuple[TensorSpec, ...]) -> None:
    assert find_padded_inputs(signature(*inputs), {}) == {}


def test_declared_values_pad_other_models_and_win_over_those_found() -> None:
    assert find_padded_inputs(signature(IDS, MASK), {"input_ids": 1}) == {
        "input_ids": PaddedInput(1, 1),
        "attention_mask": PaddedInput(1, 0),
    }
    wide = spec("sound", "float32", (None, 80, None))
    fixed = spec("speaker", "int64", (None, 1))
    assert find_padded_inputs(signature(wide, fixed), {"sound": 0.0}) == {"sound": PaddedInput(2, 0.0)}
    words = spec("words", "string", (None, None))
    assert find_padded_inputs(signature(words), {"words": ""}) == {"words": PaddedInput(1, "")}


def test_every_open_input_needs_a_value_and_a_sole_open_axis() -> None:
    assert find_padded_inputs(signature(FEATURES, IDS), {"features": 0.0}) == {}
    picture = spec("picture", "float32", (None, 3, None, None))
    assert find_padded_inputs(signature(picture), {"picture": 0.0}) == {}


@pytest.mark.parametrize(
    ("axis", "size", "padded"),
    [(BatchAxis.DYNAMIC, None, True), (BatchAxis.FIXED, 4, True), (BatchAxis.FIXED, 1, False), (ABSENT, None, False)],
)
def test_a_model_that_runs_one_record_at_a_time_is_not_padded(axis: BatchAxis, size: int | None, padded: bool) -> None:
    model = Signature((FEATURES,), (Y,), axis, size)
    assert bool(find_padded_inputs(model, {"features": 0.0})) == padded


def collation_of(
    infer: Callable[[Tensors], Tensors],
    inputs: tuple[TensorSpec, ...] = (IDS, MASK),
    open_axis: int | None = 16,
    **declared: float | str,
) -> PaddedCollation | None:
    return padded_collation(infer, signature(*inputs), declared, open_axis, PROFILE)


def warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("records of different lengths do not share a batch: ")
    return record.getMessage().partition(": ")[2]


def onnx_collation(path: Path) -> PaddedCollation | None:
    engine = open_model(path, EngineOptions(1))
    return padded_collation(engine.infer, find_signature(engine.inputs, engine.outputs), {}, 16, PROFILE)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("token_types", [False, True])
def test_an_encoder_with_a_mask_is_padded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: int, token_types: bool
) -> None:
    """Outputs (N, L, C), (N, C) and (N, heads, L, L)."""
    collation = onnx_collation(encoder(tmp_path / "m.onnx", kind, token_types=token_types))
    assert collation is not None
    assert collation.padding.outputs == {"hidden": [1], "attention": [2, 3]}
    assert not caplog.records


def test_an_encoder_that_passes_over_its_mask_is_not_padded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert onnx_collation(encoder(tmp_path / "m.onnx", masked=False)) is None
    assert "of a padded record differs by 0." in warning(caplog)


@pytest.mark.parametrize(
    ("config", "pad_lengths", "values"),
    [
        ("", True, {"input_ids": 0, "attention_mask": 0}),
        ("", False, None),
        ("[batching]\npad = false\n", True, None),
        ('[inputs.input_ids]\nname = "ids"\npadding_value = 7.0\n', True, {"input_ids": 7, "attention_mask": 0}),
    ],
)
def test_the_file_beside_a_model_and_the_setting_say_whether_and_how(
    tmp_path: Path, config: str, pad_lengths: bool, values: dict[str, int] | None
) -> None:
    (tmp_path / "byoc.toml").write_text(config)
    model = load_model(encoder(tmp_path / "m.onnx"), EngineOptions(1), 4, pad_lengths=pad_lengths)
    assert model.facts.get("padded") == values
    assert isinstance(model.collation, PaddedCollation if values else RowCollation)


def test_a_padding_value_that_the_input_does_not_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "byoc.toml").write_text("[inputs.input_ids]\npadding_value = 0.5\n")
    with pytest.raises(ModelLoadError, match=r"byoc\.toml, line 2, inputs\.input_ids\.padding_value: expected a whole"):
        load_model(encoder(tmp_path / "m.onnx"), EngineOptions(1), 4)


def test_a_model_that_is_not_to_be_padded_is_not_run() -> None:
    def infer(tensors: Tensors) -> Tensors:
        raise AssertionError("it was run")

    assert collation_of(infer, (FEATURES,)) is None


def masked_sum(tensors: Tensors) -> Tensors:
    ids, mask = (tensors[name].astype(np.float32) for name in ("input_ids", "attention_mask"))
    return {"y": (ids * mask).sum(axis=1, keepdims=True)}


def test_outputs_without_the_length_are_left_whole() -> None:
    collation = collation_of(masked_sum)
    assert collation is not None
    assert collation.padding.outputs == {}


def test_features_are_padded_where_a_value_is_declared() -> None:
    def infer(tensors: Tensors) -> Tensors:
        return {"sums": tensors["features"].sum(axis=1), "doubled": tensors["features"] * 2}

    collation = collation_of(infer, (FEATURES,), features=0.0)
    assert collation is not None
    assert collation.padding.outputs == {"doubled": [1]}


def test_features_whose_mean_is_taken_over_the_padding_are_not_padded(caplog: pytest.LogCaptureFixture) -> None:
    def infer(tensors: Tensors) -> Tensors:
        return {"mean": tensors["features"].mean(axis=1)}

    assert collation_of(infer, (FEATURES,), features=0.0) is None
    assert warning(caplog).startswith("output 'mean' of a padded record differs by ")


@pytest.mark.parametrize(
    ("rungs", "positions"),
    [
        (((1, 0.004), (8, 0.016)), 16),
        (((1, 0.002), (2, 0.002), (64, 0.004)), 496),
        (((1, 0.002), (2, 0.004)), 1),
        (((1, 0.002),), 1),
        (((4, 0.002),), 48),
    ],
)
def test_padding_costs_no_more_than_a_run(rungs: tuple[tuple[int, float], ...], positions: int) -> None:
    assert positions_of_a_run(BatchProfile(rungs), 16) == positions


def test_buckets_are_no_wider_than_what_a_run_costs() -> None:
    collation = collation_of(masked_sum)
    assert collation is not None
    requests: list[Tensors] = [dict.fromkeys(("input_ids", "attention_mask"), np.ones((1, n))) for n in (70, 75, 95)]
    keys = [collation.key(tensors) for tensors in requests]
    assert keys[0] == keys[1] != keys[2]


def test_strings_and_truth_values_are_made_up_unlike_their_padding() -> None:
    words, flags = spec("words", "string", (None, None)), spec("flags", "bool", (None, None))
    seen: list[Tensors] = []

    def infer(tensors: Tensors) -> Tensors:
        seen.append(tensors)
        return {"y": (tensors["words"] != "").sum(axis=1) + tensors["flags"].sum(axis=1)}

    assert collation_of(infer, (words, flags), words="", flags=False) is not None
    assert {*seen[0]["words"].ravel()} == {"a", "b"}
    assert seen[0]["flags"].all()


def test_inputs_of_a_fixed_record_shape_are_made_up_too() -> None:
    def infer(tensors: Tensors) -> Tensors:
        assert tensors["speaker"].shape == (len(tensors["features"]), 2)
        return {"y": tensors["features"]}

    fixed = spec("speaker", "int64", (None, 2))
    assert collation_of(infer, (FEATURES, fixed), features=0.0) is not None


@pytest.mark.parametrize("vocabulary", [64, 8, 2])
def test_ids_are_made_up_below_what_the_model_knows(vocabulary: int) -> None:
    def infer(tensors: Tensors) -> Tensors:
        if tensors["input_ids"].max() >= vocabulary:
            raise RuntimeError("indices element out of data bounds")
        return masked_sum(tensors)

    assert collation_of(infer) is not None


def test_a_model_that_takes_no_made_up_record_is_not_padded(caplog: pytest.LogCaptureFixture) -> None:
    def infer(tensors: Tensors) -> Tensors:
        raise RuntimeError("too short\nmore")

    assert collation_of(infer) is None
    assert warning(caplog) == "made-up records do not run: too short"


@pytest.mark.parametrize("open_axis", [None, 1])
def test_a_model_that_takes_no_two_lengths_is_not_padded(
    caplog: pytest.LogCaptureFixture, open_axis: int | None
) -> None:
    assert collation_of(masked_sum, open_axis=open_axis) is None
    assert warning(caplog) == "made-up records of several lengths do not run"


def test_a_model_that_fails_on_padding_is_not_padded(caplog: pytest.LogCaptureFixture) -> None:
    def infer(tensors: Tensors) -> Tensors:
        if not tensors["attention_mask"].all():
            raise RuntimeError("a mask must be ones")
        return masked_sum(tensors)

    assert collation_of(infer) is None
    assert warning(caplog) == "padded, they fail: a mask must be ones"


@pytest.mark.parametrize(
    ("shape", "shapes"),
    [
        (lambda length: (length // 2,), "(5,) for records of length 10, (8,) for those of 16"),
        (lambda length: (length, length + 1), "(10, 11) for records of length 10, (16, 17) for those of 16"),
        (lambda length: (2,) * (length // 5), "(2, 2) for records of length 10, (2, 2, 2) for those of 16"),
    ],
)
def test_outputs_whose_padding_cannot_be_told_are_not_padded(
    caplog: pytest.LogCaptureFixture, shape: Callable[[int], tuple[int, ...]], shapes: str
) -> None:
    def infer(tensors: Tensors) -> Tensors:
        rows, length = tensors["input_ids"].shape
        return {"y": np.zeros((rows, *shape(length)))}

    assert collation_of(infer) is None
    assert warning(caplog) == f"which part of output 'y' is padding cannot be told: a record has {shapes}"


def test_whole_numbers_shapes_and_what_is_not_finite_must_be_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def longest(tensors: Tensors) -> Tensors:
        return {"y": np.full((len(tensors["input_ids"]), 1), tensors["input_ids"].shape[1])}

    assert collation_of(longest) is None
    assert warning(caplog) == "output 'y' of a padded record differs altogether"
    caplog.clear()

    def counted(tensors: Tensors) -> Tensors:
        rows = len(tensors["input_ids"])
        return {"y": np.zeros((rows, 1 if tensors["attention_mask"].all() else 2), np.float32)}

    assert collation_of(counted) is None
    assert warning(caplog) == "output 'y' of a padded record differs altogether"
    caplog.clear()

    def infinite(tensors: Tensors) -> Tensors:
        with np.errstate(divide="ignore"):
            return {"y": 1 / tensors["attention_mask"].min(axis=1, keepdims=True)}

    assert collation_of(infinite) is None
    assert warning(caplog) == "output 'y' of a padded record differs altogether"


def test_what_is_not_finite_alone_may_be_so_together() -> None:
    def infer(tensors: Tensors) -> Tensors:
        ids = tensors["input_ids"]
        return {
            "y": np.array([np.nan, -np.inf, 1.0])[ids % 3],
            "z": np.zeros((len(ids), 2)),
            "w": np.zeros((len(ids), 0)),
        }

    assert collation_of(infer) is not None


def test_an_output_without_any_number_proves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert collation_of(lambda tensors: {"y": np.full(len(tensors["input_ids"]), np.nan)}) is None
    assert warning(caplog) == "output 'y' of a padded record differs altogether"


@pytest.mark.parametrize(("padding_value", "valid"), [(0, 1), (1, 0)])
def test_a_mask_is_made_up_as_what_padding_is_not(padding_value: int, valid: int) -> None:
    seen: list[Tensors] = []

    def infer(tensors: Tensors) -> Tensors:
        seen.append(tensors)
        return {"y": (tensors["attention_mask"] == valid).sum(axis=1)}

    assert collation_of(infer, attention_mask=padding_value) is not None
    assert (seen[0]["attention_mask"] == valid).all()


@pytest.mark.parametrize(("noise", "padded"), [(0.0, False), (0.02, True), (0.5, False)])
def test_a_model_that_batching_alone_changes_may_be_changed_by_padding(noise: float, padded: bool) -> None:
    """Weights of 8 bits: the range that they are rounded to is that of the batch."""

    def infer(tensors: Tensors) -> Tensors:
        off = noise * (len(tensors["input_ids"]) == 1)
        off += 0.01 * (tensors["input_ids"].shape == (3, 16))
        return {"y": masked_sum(tensors)["y"].astype(np.float32) * np.float32(1 + off)}

    assert (collation_of(infer) is not None) == padded


@pytest.mark.parametrize("call", [1, 3])
def test_a_lost_gpu_is_no_property_of_the_model(call: int) -> None:
    calls: list[Tensors] = []

    def infer(tensors: Tensors) -> Tensors:
        calls.append(tensors)
        if len(calls) == call:
            raise GpuUnavailable("the GPU is gone")
        return masked_sum(tensors)

    with pytest.raises(GpuUnavailable):
        collation_of(infer)


def scaled_above(length: int) -> Callable[[Tensors], Tensors]:
    """A model whose outputs grow with the length of the batch from some length on."""

    def infer(tensors: Tensors) -> Tensors:
        return {"y": masked_sum(tensors)["y"] * max(1.0, tensors["input_ids"].shape[1] / length)}

    return infer


@pytest.mark.parametrize("length", [8, 32, 124])
def test_a_model_that_scales_by_the_length_of_the_batch_is_not_padded(
    length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As attention that is scaled by the logarithm of the length, above the length of training."""
    assert collation_of(scaled_above(length)) is None
    assert warning(caplog).startswith("output 'y' of a padded record differs by ")


@pytest.mark.parametrize(("positions", "longest"), [(16, 16), (50, 45), (64, 64), (512, 128)])
def test_longer_records_are_tried_as_far_as_the_model_takes_them(positions: int, longest: int) -> None:
    ran: set[int] = set()

    def infer(tensors: Tensors) -> Tensors:
        length = tensors["input_ids"].shape[1]
        if length > positions:
            raise RuntimeError("indices element out of data bounds")
        ran.add(length)
        return masked_sum(tensors)

    assert collation_of(infer) is not None
    assert max(ran) == longest


@pytest.mark.parametrize(("run_s", "longest"), [(0.01, 128), (0.2, 64), (0.5, 16)])
def test_longer_records_are_not_tried_for_longer_than_a_while(run_s: float, longest: int) -> None:
    """Each run takes so long for 16 positions, and accordingly for others."""
    now_s = [0.0]
    ran: set[int] = set()

    def infer(tensors: Tensors) -> Tensors:
        length = tensors["input_ids"].shape[1]
        ran.add(length)
        now_s[0] += run_s * length / 16
        return masked_sum(tensors)

    assert padded_collation(infer, signature(IDS, MASK), {}, 16, PROFILE, clock=lambda: now_s[0]) is not None
    assert max(ran) == longest


def test_an_output_that_is_as_long_as_longer_records_only_is_not_padded(caplog: pytest.LogCaptureFixture) -> None:
    def infer(tensors: Tensors) -> Tensors:
        rows, length = tensors["input_ids"].shape
        return {"y": np.zeros((rows, max(length, 20)), np.float32)}

    assert collation_of(infer) is None
    assert warning(caplog) == "records of 64 positions and more have other axes of outputs as long as they are"


@pytest.mark.parametrize("lasting", [False, True])
def test_longer_records_without_room_in_the_memory_of_the_gpu_prove_nothing(lasting: bool) -> None:
    def infer(tensors: Tensors) -> Tensors:
        if tensors["input_ids"].shape[1] > 64:
            raise GpuUnavailable("out of memory", lasting=lasting)
        return masked_sum(tensors)

    if lasting:
        with pytest.raises(GpuUnavailable):
            collation_of(infer)
    else:
        assert collation_of(infer) is not None
