"""The optimizer and its arguments."""

from __future__ import annotations

import pytest
import torch

from library.core.errors import UserError
from library.optim.optimizers import make_optimizer, parse_optimizer_args
from library.optim.schedulers import make_scheduler
from library.options.training import OptimizerOptions


def test_arguments_are_read_as_literals_and_commas_make_lists() -> None:
    words = ["weight_decay=0.1", "betas=.9,.99", "eps=1e-6", "amsgrad=True"]
    assert parse_optimizer_args(words) == {"weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-6, "amsgrad": True}


def test_every_bad_word_is_told_and_nothing_is_run() -> None:
    with pytest.raises(UserError) as caught:
        parse_optimizer_args(["wieght_decay=1", "lr=1", "eps=__import__('os').getcwd()", "betas"])
    text = str(caught.value)
    assert "did you mean weight_decay?" in text and "use --learning_rate" in text
    assert "is no value for eps" in text and "'betas' is not an argument" in text


def test_rates_are_those_of_the_groups_and_stay_constant() -> None:
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [first], "lr": 1e-3, "name": "a"}, {"params": [second], "lr": 1e-5, "name": "b"}]
    optimizer = make_optimizer(OptimizerOptions(optimizer_args=("weight_decay=0.5",)), groups)
    scheduler = make_scheduler("constant", optimizer)
    for _ in range(3):
        first.grad, second.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-5]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.5}


def test_steps_equal_a_plain_adamw() -> None:
    ours, theirs = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer(OptimizerOptions(learning_rate=0.1), [{"params": [ours], "lr": 0.1, "name": "a"}])
    peer = torch.optim.AdamW([theirs], lr=0.1, fused=False, foreach=False)
    for step in range(4):
        ours.grad = theirs.grad = torch.tensor([1.0, -2.0, 0.5]) * (step + 1)
        optimizer.step()
        peer.step()
    torch.testing.assert_close(ours, theirs)


def test_unknown_schedule_is_a_bug() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="no schedule named cosine"):
        make_scheduler("cosine", optimizer)
