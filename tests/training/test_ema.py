"""The running average of the weights: what it is, and that the weights themselves never notice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from library.core.errors import UserError
from library.training import ema as ema_file
from library.training.ema import Ema

Groups = list[dict[str, Any]]


def make_groups(dtype: torch.dtype = torch.float32) -> Groups:
    """Two groups of weights in several shapes."""
    draws = torch.Generator().manual_seed(1)
    shapes: list[list[tuple[int, ...]]] = [[(3, 4), (5,)], [(2, 2, 2)]]
    return [
        {"params": [nn.Parameter(torch.randn(s, generator=draws).to(dtype)) for s in group], "lr": 1.0, "name": str(n)}
        for n, group in enumerate(shapes)
    ]


def weights_of(groups: Groups) -> list[torch.Tensor]:
    return [parameter.detach().clone() for group in groups for parameter in group["params"]]


def move(groups: Groups, step: int) -> None:
    """Other weights, known for each step."""
    with torch.no_grad():
        for group in groups:
            for parameter in group["params"]:
                parameter.add_(0.1 * (step + 1))


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("at_once", [1, 14, 1 << 24])
def test_the_average_is_the_closed_form(decay: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum over all weights there were, each times what is left of it, in float64."""
    monkeypatch.setattr(ema_file, "_AT_ONCE", at_once)  # the runs of tensors must not show
    groups = make_groups()
    ema, history = Ema(groups, decay), [weights_of(groups)]
    for step in range(30):
        move(groups, step)
        ema.update()
        history.append(weights_of(groups))
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(30)]
    # the weights before training count with the product of all decays, those after update n with their own share of it
    shares = [np.prod(decays), *((1 - decays[n]) * np.prod(decays[n + 1 :]) for n in range(30))]
    assert sum(shares) == pytest.approx(1)
    for number, average in enumerate(ema.state_dict()["averages"]):
        moments = zip(shares, history, strict=True)
        expected = sum(share * weights[number].double().numpy() for share, weights in moments)
        assert average.dtype == torch.float32
        np.testing.assert_allclose(average.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_swapped_weights_are_the_averages_and_come_back_bit_by_bit(dtype: torch.dtype) -> None:
    groups = make_groups(dtype)
    ema = Ema(groups, 0.9)
    for step in range(5):
        move(groups, step)
        ema.update()
    before, averages = weights_of(groups), [average.clone() for average in ema.state_dict()["averages"]]
    with ema.swapped():
        inside = weights_of(groups)
        assert_same(inside, [average.to(dtype) for average in averages])
        assert not torch.equal(inside[0], before[0])
    assert_same(weights_of(groups), before)
    assert_same(ema.state_dict()["averages"], averages)
    with pytest.raises(ZeroDivisionError), ema.swapped():
        raise ZeroDivisionError
    assert_same(weights_of(groups), before)


def test_averages_of_half_precision_weights_keep_what_one_update_is_too_small_to_show() -> None:
    (parameter,) = parameters = [nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]
    ema = Ema([{"params": parameters}], 0.999)
    ema.updates = 100_000
    with torch.no_grad():
        parameter.fill_(2.0)
    ema.update()
    (average,) = ema.state_dict()["averages"]
    assert average.tolist() == pytest.approx([1.001] * 4, abs=1e-6)


def test_a_resumed_average_goes_on_as_the_first(tmp_path: Any) -> None:
    groups, other = make_groups(), make_groups()
    whole = Ema(groups, 0.95)
    for step in range(3):
        move(groups, step)
        whole.update()
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    for step in range(3):
        move(other, step)
    resumed = Ema(other, 0.95)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    for step in range(3, 6):
        for which, ema in ((groups, whole), (other, resumed)):
            move(which, step)
            ema.update()
    assert_same(whole.state_dict()["averages"], resumed.state_dict()["averages"])
    assert resumed.updates == whole.updates == 6


def test_averages_of_other_weights_are_refused() -> None:
    state = Ema(make_groups(), 0.9).state_dict()
    with pytest.raises(UserError, match="do not fit"):
        Ema([{"params": [nn.Parameter(torch.ones(2))]}], 0.9).load_state_dict(state)


def test_while_swapped_nothing_else_may_be_asked() -> None:
    ema = Ema(make_groups(), 0.9)
    with ema.swapped():
        for ask in (ema.update, ema.state_dict, lambda: ema.load_state_dict({})):
            with pytest.raises(RuntimeError):
                ask()
