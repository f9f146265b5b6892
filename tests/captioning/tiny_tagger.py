"""Small taggers in ONNX form, laid out as the public families lay out theirs; their tags depend on the picture.

They average the colours of the four quarters of a picture and weigh them at random (by a fixed seed), so that another
order of channels, another scale or another place of the picture gives other tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

RATINGS = ("general", "sensitive", "questionable", "explicit")
ALWAYS = "solo"  # a tag of every picture
GENERAL = (
    *("1girl", ALWAYS, "long_hair", "blue_eyes", "looking_at_viewer", "^_^", ">_<", "(o)_(o)", "outdoors", "no_humans"),
    *("hatsune_miku_(cosplay)", "blurry_background", "monochrome", "traditional_media"),
)
CHARACTERS = ("hatsune_miku", "saber_(fate)", "kirisame_marisa")
WD_TAGS = (*RATINGS, *GENERAL, *CHARACTERS)
DD_RATINGS = ("rating:safe", "rating:questionable", "rating:explicit")
DD_TAGS = (*GENERAL, *CHARACTERS, *DD_RATINGS)

_CATEGORY = {**dict.fromkeys(RATINGS, 9), **dict.fromkeys(GENERAL, 0), **dict.fromkeys(CHARACTERS, 4)}


@dataclass(frozen=True)
class Shape:
    """What differs between models of a family.

    `batch`: a number, or the name of a dynamic axis. `scale`: what the model multiplies pixels by. `element`: type of
    its input. `ends_in_sigmoid`: its outputs are probabilities. `blind_below`: brightness (0 to 1) of a picture's mean
    below which it gives no numbers, only NaN. `tag_axis`: whether the file tells how many outputs there are.
    """

    input: str
    output: str
    size: int | str
    nchw: bool = False
    batch: int | str = "N"
    scale: float = 1 / 255
    element: int = TensorProto.FLOAT
    ends_in_sigmoid: bool = True
    blind_below: float = -1.0
    tag_axis: bool = True


def make_wd_tagger(
    folder: Path, layout: str = "v1-4", size: int = 448, batch: int | str | None = None, ends_in_sigmoid: bool = True
) -> Path:
    """Writes model.onnx and selected_tags.csv; returns the folder.

    Args:
        folder: where to; it is made.
        layout: "v1-4" and "v3" have the names and axes of those families, "nchw" has the colours in front.
        size: side of the square that the model takes.
        batch: pictures that it takes at once, or the name of a dynamic axis; None as the family has it.
        ends_in_sigmoid: without, the model gives numbers that are no probabilities yet.
    """
    names = {"v1-4": ("input_1:0", "predictions_sigmoid", "N"), "v3": ("input", "output", "batch_size")}
    input, output, axis = names.get(layout, ("input", "output", "batch"))
    shape = Shape(input, output, size, layout == "nchw", batch or axis, ends_in_sigmoid=ends_in_sigmoid)
    write_model(folder / "model.onnx", shape, len(WD_TAGS), WD_TAGS.index(ALWAYS))
    rows = [f"{number},{name},{_CATEGORY[name]},{1000 - number}" for number, name in enumerate(WD_TAGS)]
    write_lines(folder / "selected_tags.csv", ["tag_id,name,category,count", *rows])
    return folder


def make_deepdanbooru(folder: Path, size: int = 512, characters: bool = True) -> Path:
    """Writes a model and tags.txt, with tags-character.txt where `characters` are known; returns the folder."""
    shape = Shape("input_1", "activation_172", size, batch="unk__1", scale=1.0)
    write_model(folder / "model-resnet_custom_v3.onnx", shape, len(DD_TAGS), DD_TAGS.index(ALWAYS))
    write_lines(folder / "tags.txt", DD_TAGS)
    if characters:
        write_lines(folder / "tags-character.txt", CHARACTERS)
    return folder


def write_model(path: Path, shape: Shape, tags: int, always: int) -> None:
    """Writes the model: quarters of the picture (mean colours) -> weights -> sigmoid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(build_model(shape, tags, always), str(path))


def build_model(shape: Shape, tags: int, always: int) -> onnx.ModelProto:
    side = shape.size
    axes: list[int | str] = [shape.batch, 3, side, side] if shape.nchw else [shape.batch, side, side, 3]
    weights, bias = weights_of(tags, always)
    constants = {
        "scale": np.array(shape.scale, np.float32),
        "middle": np.array(0.5, np.float32),
        "weights": weights,
        "bias": bias,
        "blind_below": np.array(shape.blind_below, np.float32),
        "nothing": np.array(0, np.float32),
    }
    nodes = [
        helper.make_node("Cast", [shape.input], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["colours"], perm=[0, 1, 2, 3] if shape.nchw else [0, 3, 1, 2]),
        *_quarters(side),
        helper.make_node("Flatten", ["quarters"], ["means"]),
        helper.make_node("Mul", ["means", "scale"], ["shares"]),
        helper.make_node("Sub", ["shares", "middle"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weights"], ["weighed"]),
        helper.make_node("Add", ["weighed", "bias"], ["sums"]),
        helper.make_node("ReduceMean", ["shares"], ["brightness"], axes=[1]),
        helper.make_node("Sub", ["brightness", "blind_below"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),  # NaN of what is below
        helper.make_node("Mul", ["root", "nothing"], ["zero"]),
        helper.make_node("Add", ["sums", "zero"], ["logits" if shape.ends_in_sigmoid else shape.output]),
    ]
    if shape.ends_in_sigmoid:
        nodes.append(helper.make_node("Sigmoid", ["logits"], [shape.output]))
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info(shape.input, shape.element, axes)],
        [
            helper.make_tensor_value_info(
                shape.output, TensorProto.FLOAT, [shape.batch, tags if shape.tag_axis else "tags"]
            )
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    # onnxruntime refuses the newest format that onnx writes by itself
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _quarters(side: int | str) -> Sequence[onnx.NodeProto]:
    """Mean colours of the four quarters, or where the size is open, of the whole picture four times."""
    if isinstance(side, int):
        half = side // 2
        return [
            helper.make_node("AveragePool", ["colours"], ["quarters"], kernel_shape=[half, half], strides=[half, half])
        ]
    return [
        helper.make_node("GlobalAveragePool", ["colours"], ["whole"]),
        helper.make_node("Concat", ["whole"] * 4, ["quarters"], axis=3),
    ]


def weights_of(tags: int, always: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(12, tags) and (tags,): rows are red, green, blue (as the model takes them) of four quarters each."""
    random = np.random.default_rng(7)
    weights = random.normal(0.0, 3.0, (12, tags)).astype(np.float32)
    bias = random.normal(-0.5, 0.5, tags).astype(np.float32)
    weights[:, always], bias[always] = 0.0, 4.0
    return weights, bias


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
