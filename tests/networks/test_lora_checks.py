"""What is said of a LoRA's options and files before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from library.core.errors import UserError
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from networks.lora import check_family, check_options, check_parts, create_network
from networks.lora_arguments import BLOCKS, parse_arguments
from networks.lora_targets import block_of, trained_blocks
from tests.networks.lora_helpers import make

ZEROS = ",".join(25 * ["0"])
NO_WEIGHTS = {"down_lr_weight": "zeros", "mid_lr_weight": "0", "up_lr_weight": "zeros"}


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return make_tiny_model("sd1", seed=0)


@pytest.fixture(scope="module")
def tensors(model: StableDiffusion) -> dict[str, torch.Tensor]:
    """A file for linear layers of both parts."""
    return create_network(1.0, 2, 1.0, None, model.text_encoder, model.unet).file_tensors()


def blocks(value: str, **changes: str) -> str:
    """25 numbers, all alike but for some blocks."""
    return ",".join(changes.get(block, value) for block in BLOCKS)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"block_dims": blocks("0", IN03="2", IN10="2", OUT00="3", MID="1")},
        {"block_dims": blocks("0", IN03="2", IN10="2", OUT00="3"), "conv_dim": "2"},
        {"down_lr_weight": "zeros", "conv_block_dims": blocks("0", IN00="1", IN03="1", OUT02="4")},
    ],
)
def test_blocks_are_those_of_a_real_network(model: StableDiffusion, given: dict[str, str]) -> None:
    network = create_network(1.0, 2, 1.0, None, None, model.unet, **given)
    found: tuple[set[int | None], set[int | None]] = (set(), set())
    for key, value in network.file_tensors().items():
        if key.endswith("lora_down.weight"):
            found[value.dim() == 4 and value.shape[2] > 1].add(block_of(key.split(".")[0]))
    assert tuple(map(set, trained_blocks(parse_arguments(2, None, None, given)))) == found


@pytest.mark.parametrize("given", [NO_WEIGHTS, {"block_dims": ZEROS}, {"block_dims": blocks("0", IN03="4")}])
def test_a_unet_without_blocks_is_told(given: dict[str, str]) -> None:
    with pytest.raises(UserError, match="no block of the U-Net is left to train") as caught:
        check_parts(given, True, True)
    assert "--network_train_text_encoder_only" in caught.value.problems[0].fix
    check_parts({**given, "conv_dim": "2"} if given is not NO_WEIGHTS else {**given, "mid_lr_weight": "1"}, True, True)


def test_a_ratio_that_no_part_uses_is_told() -> None:
    both = {"loraplus_lr_ratio": "4"}
    for parts, own in (((True, False), "text_encoder"), ((False, True), "unet")):
        with pytest.raises(UserError, match="loraplus_lr_ratio: the only part that trains has a ratio of its own"):
            check_parts({**both, f"loraplus_{own}_lr_ratio": "2"}, *parts)
        check_parts(both, *parts)
    check_parts({**both, "loraplus_unet_lr_ratio": "2"}, True, True)


def test_a_file_must_have_the_parts_that_train(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    whole, unet, text = (tmp_path / f"{name}.safetensors" for name in ("whole", "unet", "text"))
    save_file(tensors, str(whole))
    save_file({key: value for key, value in tensors.items() if key.startswith("lora_unet_")}, str(unet))
    save_file({key: value for key, value in tensors.items() if key.startswith("lora_te_")}, str(text))
    for file, parts in ((whole, (True, True)), (unet, (False, True)), (text, (True, False))):
        check_parts({}, *parts, file)
    save_file({"emb_params": torch.ones(1, 8)}, str(tmp_path / "other.safetensors"))
    check_parts({}, True, True, tmp_path / "other.safetensors")  # told once, by check_options
    check_family(tmp_path / "other.safetensors", "here", 768)
    for file, parts, said, mend in (
        (unet, (True, True), "nothing for the text encoder, which trains", "give --network_train_unet_only"),
        (text, (True, True), "nothing for the U-Net, which trains", "give --network_train_text_encoder_only"),
        (whole, (False, True), "modules for the text encoder, which does not train", "remove --network_train_unet"),
        (whole, (True, False), "modules for the U-Net, which does not train", "remove --network_train_text"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            check_parts({}, *parts, file)
        assert mend in caught.value.problems[0].fix


def test_a_file_must_have_the_blocks_and_the_family(
    model: StableDiffusion, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    save_file({key: value for key, value in tensors.items() if "_mid_block_" not in key}, str(file))
    check_options(None, {}, file)
    check_options(2, {"mid_lr_weight": "0"}, file)
    with pytest.raises(UserError, match="the file has no modules in MID, and the options ask for some"):
        check_options(2, {}, file)
    width = model.unet.config.cross_attention_dim
    check_family(file, "here", width)
    with pytest.raises(UserError, match=f"text states of the width {width}, and the base model has 1024"):
        check_family(file, "here", 1024)


def test_convolutions_of_rank_0_ask_for_nothing(model: StableDiffusion, tmp_path: Path) -> None:
    given = {"conv_block_dims": ZEROS}
    make(model, rank=2, **given).save_weights(tmp_path / "x.safetensors", None, {})
    check_options(2, given, tmp_path / "x.safetensors")


def test_an_alpha_must_fit_the_file() -> None:
    check_options(4, {}, None, network_alpha=1e5, save_dtype=torch.float32)
    check_options(4, {}, None, network_alpha=0, save_dtype=torch.float16)
    for alpha, given in ((1e5, {}), (1e-9, {}), (1, {"block_alphas": blocks("1", MID="70000")})):
        with pytest.raises(UserError, match=r"an alpha of .* would be saved as (inf|0) in float16"):
            check_options(4, given, None, network_alpha=alpha, save_dtype=torch.float16)
