"""Taggers in ONNX form: what is asked from the file, and files that are none."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from library.captioning import tag_model
from library.captioning.onnx_session import open_onnx
from library.captioning.tag_list import Family, TaggerFiles
from library.captioning.tag_model import TagModel
from library.core.errors import UserError
from tests.captioning.tiny_tagger import WD_TAGS, Shape, build_model, make_wd_tagger, weights_of, write_model

SIDE, COUNT, ALWAYS = 32, 12, 3
WD_SHAPE = Shape("input", "output", SIDE)
Pictures = Sequence[NDArray[np.uint8]]


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="sd_atelier")
    logging.getLogger("sd_atelier").propagate = True
    return caplog


@pytest.fixture
def pictures() -> Pictures:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) // np.uint8(n % 3 + 1) for n in range(8)]


def files_of(path: Path, family: Family = Family.WD) -> TaggerFiles:
    return TaggerFiles(path, path.with_name("list"), family, "THE FIX")


def opened(path: Path, shape: Shape, family: Family = Family.WD, batch_size: int = 1, count: int = COUNT) -> TagModel:
    write_model(path, shape, count, ALWAYS)
    return TagModel(files_of(path, family), COUNT, batch_size)


def refused(path: Path, count: int = COUNT) -> str:
    with pytest.raises(UserError) as caught:
        TagModel(files_of(path), count, 1)
    return str(caught.value)


def by_hand(pictures: Pictures, bgr: bool) -> NDArray[np.float64]:
    """What the little model computes, without ONNX."""
    weights, bias = weights_of(COUNT, ALWAYS)
    rows = []
    for pixels in pictures:
        values = (pixels[..., ::-1] if bgr else pixels) / 255
        quarters = values.reshape(2, SIDE // 2, 2, SIDE // 2, 3).mean((1, 3))
        rows.append((quarters.transpose(2, 0, 1).ravel() - 0.5) @ weights + bias)
    return 1 / (1 + np.exp(-np.array(rows, np.float64)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"input": "input_1:0", "output": "predictions_sigmoid"},
        {"nchw": True},
        {"batch": 1},
        {"batch": 3},
        {"element": TensorProto.FLOAT16},
        {"element": TensorProto.DOUBLE},
        {"ends_in_sigmoid": False},
        {"tag_axis": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", Family)
def test_any_layout_gives_what_the_model_means(
    tmp_path: Path, pictures: Pictures, changes: dict[str, Any], family: Family
) -> None:
    is_wd = family is Family.WD
    shape = replace(WD_SHAPE, **{"scale": 1 / 255 if is_wd else 1.0, **changes})
    model = opened(tmp_path / "model.onnx", shape, family, batch_size=4)
    found = model.confidences(pictures)
    assert (found.dtype, found.shape, model.side) == (np.float32, (8, COUNT), SIDE)
    slack = 2e-3 if shape.element == TensorProto.FLOAT16 else 2e-6
    assert np.abs(found - by_hand(pictures, bgr=is_wd)).max() < slack
    assert np.abs(found - by_hand(pictures, bgr=not is_wd)).max() > 0.05


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_a_picture_gets_the_same_bits_in_any_company(tmp_path: Path, pictures: Pictures, batch: int | str) -> None:
    shape = replace(WD_SHAPE, batch=batch)
    alone = np.concatenate([opened(tmp_path / "m.onnx", shape).confidences([pixels]) for pixels in pictures])
    for size in (1, 2, 3, 8):
        model = opened(tmp_path / "m.onnx", shape, batch_size=size)
        found = np.concatenate([model.confidences(pictures[at : at + size]) for at in range(0, 8, size)])
        assert np.array_equal(found, alone), size
    assert np.array_equal(model.confidences(pictures[::-1])[::-1], alone)


def test_what_is_chosen_is_told(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    opened(tmp_path / "a.onnx", replace(WD_SHAPE, batch=2), batch_size=4)
    assert "tagging on CPU (CPUExecutionProvider)" in told.text
    assert "takes 2 pictures at a time; --batch_size changes nothing" in told.text
    assert "sigmoid" not in told.text
    opened(tmp_path / "b.onnx", replace(WD_SHAPE, ends_in_sigmoid=False))
    assert "no probabilities yet; a sigmoid is applied" in told.text
    for family, side in ((Family.WD, 448), (Family.DEEPDANBOORU, 512)):
        assert opened(tmp_path / "c.onnx", replace(WD_SHAPE, size="side"), family).side == side
        assert f"given {side}x{side}" in told.text


def test_pictures_without_numbers_are_those_rows_alone(tmp_path: Path) -> None:
    model = opened(tmp_path / "m.onnx", replace(WD_SHAPE, blind_below=0.3))
    dark, light = np.full((SIDE, SIDE, 3), 10, np.uint8), np.full((SIDE, SIDE, 3), 200, np.uint8)
    found = model.confidences([light, dark, light])
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    assert np.array_equal(found[0], found[2]) and np.isfinite(found[0]).all()


def test_a_model_that_never_gives_numbers(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx", replace(WD_SHAPE, blind_below=2.0), COUNT, ALWAYS)
    assert "no numbers at all" in refused(tmp_path / "m.onnx")


@pytest.mark.parametrize("tag_axis", [True, False])
def test_another_number_of_outputs_than_tags(tmp_path: Path, tag_axis: bool) -> None:
    write_model(tmp_path / "m.onnx", replace(WD_SHAPE, tag_axis=tag_axis), COUNT + 2, ALWAYS)
    assert f"it has {COUNT + 2} outputs, its list names {COUNT} tags" in refused(tmp_path / "m.onnx")


def test_the_output_with_the_tags_among_others(tmp_path: Path, pictures: Pictures) -> None:
    """As in models that give features, and numbers before the sigmoid, too."""
    model = build_model(WD_SHAPE, COUNT, ALWAYS)
    for name, count in (("logits", COUNT), ("means", 12 + 1)):
        further = onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", count])
        model.graph.output.insert(0, further)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 12 * 3
    onnx.save(model, str(tmp_path / "m.onnx"))
    found = TagModel(files_of(tmp_path / "m.onnx"), COUNT, 1).confidences(pictures)
    assert np.abs(found - by_hand(pictures, bgr=True)).max() < 2e-6


@pytest.mark.parametrize(
    ("axes", "element", "what"),
    [
        (["N", 30, 40, 3], TensorProto.FLOAT, "squares of"),
        (["N", 30, "w", 3], TensorProto.FLOAT, "squares of"),
        (["N", 8, 8, 3], TensorProto.FLOAT, "squares of"),
        (["N", 90000, 90000, 3], TensorProto.FLOAT, "squares of"),
        (["N", 32, 32, 4], TensorProto.FLOAT, "4 axes and 3 colours"),
        (["N", 3], TensorProto.FLOAT, "4 axes and 3 colours"),
        (["N", 32, 32, 3], TensorProto.STRING, "tensor(string)"),
        ([100000, 32, 32, 3], TensorProto.FLOAT, "256 at most"),
    ],
)
def test_inputs_that_take_no_such_pictures(tmp_path: Path, axes: list[int | str], element: int, what: str) -> None:
    helper = onnx.helper
    shape = helper.make_node("Shape", ["x"], ["s"])
    cast = helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [shape, cast],
        "g",
        [helper.make_tensor_value_info("x", element, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(tmp_path / "m.onnx")
    )
    told = refused(tmp_path / "m.onnx")
    assert what in told and "m.onnx" in told


def test_an_output_without_rows(tmp_path: Path) -> None:
    model = build_model(WD_SHAPE, COUNT, ALWAYS)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("scale", TensorProto.FLOAT, []))
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert "no row of numbers" in refused(tmp_path / "m.onnx")


def test_damaged_files(tmp_path: Path) -> None:
    path = make_wd_tagger(tmp_path, size=SIDE) / "model.onnx"
    whole, count = path.read_bytes(), len(WD_TAGS)
    for content in (b"", b"<html>Not found</html>" * 9, whole[: len(whole) // 2]):
        path.write_bytes(content)
        told = refused(path, count)
        assert "no ONNX model that onnxruntime opens" in told and "-> THE FIX" in told
    path.unlink()
    assert "-> THE FIX" in refused(path, count)


def test_files_that_are_too_new(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for changes in ({"ir_version": 99}, {"opset": 99}):
        model = build_model(WD_SHAPE, COUNT, ALWAYS)
        model.ir_version = changes.get("ir_version", model.ir_version)
        model.opset_import[0].version = changes.get("opset", 13)
        onnx.save(model, str(path))
        told = refused(path)
        assert "too new for this onnxruntime" in told and "99" in told and "pip install -U onnxruntime" in told


def save_in_two(path: Path, location: str) -> None:
    """A model whose weights lie in a file of their own, or so it says."""
    onnx.save(
        build_model(WD_SHAPE, COUNT, ALWAYS),
        str(path),
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())


def test_weights_in_a_further_file(tmp_path: Path, pictures: Pictures) -> None:
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    save_in_two(path, "model.onnx.data")
    found = TagModel(files_of(path), COUNT, 1).confidences(pictures)
    assert np.abs(found - by_hand(pictures, bgr=True)).max() < 2e-6
    (path.parent / "short").write_bytes(b"1234")
    outside = shutil.copy(path.parent / "model.onnx.data", tmp_path / "outside")
    (path.parent / "link").symlink_to(outside)
    for location, what in (
        ("gone", "a further file of the model is missing"),
        ("short", "a further file of the model is not whole"),
        ("../outside", "reaches for data outside its folder"),
        (str(outside), "reaches for data outside its folder"),
        ("link", "reaches for data outside its folder"),
    ):
        save_in_two(path, location)
        assert what in refused(path), location


@pytest.mark.filterwarnings("ignore:Specified provider")  # which the true package does not say
def test_a_card_that_is_listed_and_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """As onnxruntime-gpu does it on a machine without the libraries of CUDA."""
    listed = ["CUDAExecutionProvider", *onnxruntime.get_available_providers()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    opened(tmp_path / "m.onnx", WD_SHAPE)
    assert "tagging on CPU (CPUExecutionProvider)" in told.text
    assert "CUDAExecutionProvider was there to choose and could not be started" in told.text
    assert "requirements-gpu.txt" in told.text
    assert capfd.readouterr().out == ""  # onnxruntime itself prints


def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are taken for those of a card, which get whole batches."""
    monkeypatch.setattr(tag_model, "open_onnx", lambda path, fix: replace(open_onnx(path, fix), on_card=True))


@pytest.mark.parametrize("family", Family)
def test_a_card_gets_batches_of_one_size(
    tmp_path: Path,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
    told: pytest.LogCaptureFixture,
    family: Family,
) -> None:
    as_on_a_card(monkeypatch)
    is_wd = family is Family.WD
    model = opened(tmp_path / "m.onnx", replace(WD_SHAPE, scale=1 / 255 if is_wd else 1.0), family, batch_size=3)
    assert [len(part) for part in model._parts(pictures)] == [3, 3, 2]
    found = model.confidences(pictures)
    assert found.shape == (8, COUNT)
    assert np.abs(found - by_hand(pictures, bgr=is_wd)).max() < 2e-6
    assert "at once are too much" not in told.text


def test_batches_that_are_too_large_for_a_card(
    tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    """This model fails for more than one picture, as others do when the card's memory ends."""
    model = build_model(WD_SHAPE, COUNT, ALWAYS)
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    flatten.op_type = "Reshape"
    flatten.input.append("one_row")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 12], np.int64), "one_row"))
    onnx.save(model, str(tmp_path / "m.onnx"))
    as_on_a_card(monkeypatch)
    found = TagModel(files_of(tmp_path / "m.onnx"), COUNT, 4).confidences(pictures)
    assert np.abs(found - by_hand(pictures, bgr=True)).max() < 2e-6
    assert told.text.count("4 pictures at once are too much") == 1
