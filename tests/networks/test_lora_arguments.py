"""The words of --network_args for networks.lora: what they mean, and what is wrong with them."""

from __future__ import annotations

import math

import pytest

from library.core.errors import UserError
from networks.lora import check_options, check_parts
from networks.lora_arguments import LoraArguments, parse_arguments


def parsed(**given: str) -> LoraArguments:
    return parse_arguments(None, None, None, given)


def test_defaults() -> None:
    plain = parsed()
    assert (plain.rank, plain.alpha, plain.convolutions, plain.weights, plain.ratios) == (4, 1.0, None, None, {})
    assert set(plain.linear.ranks) == {4} and set(plain.linear.alphas) == {1.0} and len(plain.linear.ranks) == 25
    assert plain.dropouts.neuron == plain.dropouts.rank == plain.dropouts.module == 0
    grid = parsed(conv_dim="2").convolutions
    assert grid is not None and set(grid.ranks) == {2} and set(grid.alphas) == {1.0}


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("sine", lambda i: math.sin(math.pi / 2 * i / 11)),
        ("cosine", lambda i: math.sin(math.pi / 2 * (11 - i) / 11)),
        ("linear", lambda i: i / 11),
        ("reverse_linear", lambda i: (11 - i) / 11),
        ("zeros", lambda i: 0.0),
    ],
)
def test_curves_run_along_one_side_and_can_be_lifted(name: str, weight: object) -> None:
    expected = [weight(i) for i in range(12)]
    down = parsed(down_lr_weight=name).weights
    assert down is not None and down[:12] == pytest.approx(expected) and down[12:] == 13 * (1.0,)
    up = parsed(up_lr_weight=f"{name}+.25").weights
    assert up is not None and up[13:] == pytest.approx([w + 0.25 for w in expected]) and up[:13] == 13 * (1.0,)


def test_weights_up_to_the_threshold_are_zero() -> None:
    weights = parsed(mid_lr_weight="0.5", down_lr_weight="linear", block_lr_zero_threshold="0.5").weights
    assert weights is not None and weights[12] == 0
    assert weights[:6] == 6 * (0.0,) and weights[6] == pytest.approx(6 / 11)


@pytest.mark.parametrize(
    ("given", "said", "mend"),
    [
        ({"conv_dmi": "4"}, "conv_dmi is not an argument of networks.lora", "did you mean conv_dim?"),
        ({"dropout": "0.1"}, "dropout is not an argument", "did you mean"),
        ({"conv_dim": "four"}, "conv_dim=four: not a number", "write numbers"),
        ({"conv_dim": "0"}, "must be a whole number from 1, got 0", "change"),
        ({"conv_dim": "1.5"}, "must be a whole number from 1, got 1.5", "change"),
        ({"conv_dim": "nan"}, "not a number", "write"),
        ({"conv_alpha": "1"}, "conv_alpha=1: convolutions get no modules", "give conv_dim"),
        ({"conv_block_alphas": ",".join(25 * "1")}, "convolutions get no modules", "give conv_dim"),
        ({"conv_dim": "4", "conv_block_dims": ",".join(25 * "1")}, "conv_block_dims says it for every block", "give"),
        ({"block_dims": "2,2,2"}, "25 numbers are needed, here are 3", "give 25: IN00 to IN11, MID, OUT00 to OUT11"),
        ({"block_dims": ",".join(24 * ["2"] + ["-1"])}, "must be a whole number from 0, got -1", "change"),
        ({"block_alphas": ",".join(25 * ["-1"])}, "must be 0 or more, got -1", "change"),
        ({"down_lr_weight": "1,1"}, "12 numbers are needed, here are 2", "give 12"),
        ({"down_lr_weight": "cosin"}, "neither 12 numbers nor a curve", "did you mean cosine?"),
        ({"up_lr_weight": "sine+x"}, "a number from 0 stands behind the +", "sine+0.25"),
        ({"mid_lr_weight": "1,2"}, "one number is needed, here are 2", "give 1"),
        ({"mid_lr_weight": "-1"}, "must be 0 or more", "change"),
        ({"block_lr_zero_threshold": "0.1"}, "there are no weights to compare with", "down_lr_weight"),
        ({"rank_dropout": "1"}, "must be at least 0 and below 1, got 1", "change"),
        ({"module_dropout": "-0.1"}, "must be at least 0 and below 1", "change"),
        ({"loraplus_lr_ratio": "0"}, "must be above 0", "change"),
        (
            {"loraplus_lr_ratio": "2", "loraplus_unet_lr_ratio": "3", "loraplus_text_encoder_lr_ratio": "4"},
            "both parts have a ratio of their own",
            "remove loraplus_lr_ratio",
        ),
    ],
)
def test_mistakes_are_told_without_a_model(given: dict[str, str], said: str, mend: str) -> None:
    with pytest.raises(UserError) as caught:
        check_options(4, given, None)
    (problem,) = caught.value.problems
    assert said in problem.what and mend in problem.fix and problem.where == "--network_args"


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parsed(conv_dim="x", rank_dropout="2", blok_dims="1")
    assert len(caught.value.problems) == 3


def test_arguments_of_a_part_that_does_not_train_are_refused() -> None:
    check_parts({"loraplus_text_encoder_lr_ratio": "2", "conv_dim": "2"}, True, True)
    with pytest.raises(UserError, match="loraplus_text_encoder_lr_ratio: the text encoder does not train"):
        check_parts({"loraplus_text_encoder_lr_ratio": "2"}, False, True)
    with pytest.raises(UserError, match="conv_dim: the U-Net does not train"):
        check_parts({"conv_dim": "2"}, True, False)
