"""The table of new vectors beside the old one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from library.core.errors import UserError
from library.methods.embedding import Embedding, ExtendedTable, StartVectors, start_vectors
from library.models.embedding_files import read_embedding
from library.models.tiny import make_tiny_model
from library.text.aliases import FIRST_NEW_ID

IDS = torch.tensor([[49406, 320, FIRST_NEW_ID, FIRST_NEW_ID + 1, 2368, 49407]])


@pytest.fixture
def table() -> nn.Embedding:
    return make_tiny_model("sd1", seed=0).text_encoder.embeddings.token_embedding


def test_ids_are_looked_up_in_their_own_table(table: nn.Embedding) -> None:
    new = torch.full((2, 32), 5.0) + torch.tensor([[0.0], [1.0]])
    found = ExtendedTable(table, new)(IDS)
    assert torch.equal(found[0, 2:4], new)
    known = [0, 1, 4, 5]
    assert torch.equal(found[0, known], table(IDS[0, known]))


def test_gradients_reach_the_new_rows_that_are_used_and_nothing_else(table: nn.Embedding) -> None:
    extended = ExtendedTable(table, torch.zeros(3, 32))
    extended(IDS).square().sum().backward()  # the derivative at zero
    extended(IDS).sum().backward()
    assert extended.new.weight.grad is not None and table.weight.grad is None
    assert torch.equal(extended.new.weight.grad, torch.tensor([[1.0], [1.0], [0.0]]).expand(3, 32))
    assert [name for name, p in extended.named_parameters() if p.requires_grad] == ["new.weight"]


def test_captions_without_the_word_give_a_gradient_of_zeros(table: nn.Embedding) -> None:
    """Engines wait for a gradient of every trained weight in every batch."""
    extended = ExtendedTable(table, torch.ones(1, 32))
    extended(IDS[:, :2]).sum().backward()
    assert extended.new.weight.grad is not None and not extended.new.weight.grad.any()


def test_new_vectors_learn_in_float32_beside_a_table_of_half_precision(table: nn.Embedding) -> None:
    extended = ExtendedTable(table.to(torch.bfloat16), torch.full((2, 32), 1 + 2**-12))
    assert extended(IDS).dtype == torch.bfloat16
    assert extended.new.weight.dtype == torch.float32 and extended.new.weight[0, 0] == 1 + 2**-12


def test_start_of_a_file_a_word_and_none(table: nn.Embedding) -> None:
    weight = table.weight
    from_file = torch.arange(64.0).reshape(2, 32)
    assert torch.equal(start_vectors(StartVectors(2, from_file), weight, 0), from_file)
    in_turn = start_vectors(StartVectors(5, None, (320, 2368)), weight, 0)
    assert torch.equal(in_turn, weight[[320, 2368, 320, 2368, 320]])
    assert torch.equal(start_vectors(StartVectors(1, None, (320, 2368)), weight, 0), weight[[320]])
    first, again, other = (start_vectors(StartVectors(200), weight, seed) for seed in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.std() == pytest.approx(float(weight.std()), rel=0.05)
    assert (first.mean(dim=0) - weight.mean(dim=0)).abs().max() < 0.2
    assert len(first.unique(dim=0)) == 200


def test_start_does_not_share_memory_with_the_model(table: nn.Embedding) -> None:
    before = table.weight.clone()
    start_vectors(StartVectors(1, None, (320,)), table.weight, 0).add_(1)
    assert torch.equal(table.weight, before)


def test_only_the_new_vectors_train() -> None:
    models = make_tiny_model("sd2", seed=1)
    method = Embedding(torch.ones(2, 64), 0.5)
    assert method.attach(models) is None  # type: ignore[func-returns-value]
    (group,) = method.param_groups()
    (vectors,) = group["params"]
    assert (vectors.shape, group["lr"], group["name"]) == ((2, 64), 0.5, "embedding")
    for part in (models.unet, models.text_encoder, models.vae):
        assert all(p is vectors for p in part.parameters() if p.requires_grad)
    assert method.trains_text_encoder(0) and method.float32_models == ()


def test_a_file_of_another_family_is_refused() -> None:
    method = Embedding(torch.ones(1, 32), 0.5)
    with pytest.raises(UserError, match="have 32 numbers, and those of the model's words 64"):
        method.attach(make_tiny_model("sd2", seed=1))


def test_a_number_beyond_the_format_does_not_cost_the_training(tmp_path: Path) -> None:
    method = Embedding(torch.full((1, 32), 1e5), 0.5)
    method.attach(make_tiny_model("sd1", seed=1))
    with pytest.raises(UserError, match="the embedding was saved in float32 instead"):
        method.save(tmp_path / "zu.safetensors", torch.float16, {})
    assert torch.equal(read_embedding(tmp_path / "zu.safetensors"), torch.full((1, 32), 1e5))
