"""Which form, which path, which precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from library.core.errors import UserError
from library.models.forms import SaveTarget, choose_form, form_of_path, is_single_file, saved_precision, target_for
from library.options.saving import SAVE_FORMATS


@pytest.mark.parametrize("loaded", SAVE_FORMATS)
def test_the_form_of_the_base_model_is_kept(loaded: str) -> None:
    assert choose_form(None, False, loaded) == loaded


@pytest.mark.parametrize("asked", SAVE_FORMATS)
@pytest.mark.parametrize("loaded", SAVE_FORMATS)
def test_what_is_asked_for_wins(asked: str, loaded: str) -> None:
    assert choose_form(asked, False, loaded) == asked


@pytest.mark.parametrize(
    ("asked", "loaded", "form"),
    [
        (None, "ckpt", "safetensors"),
        (None, "safetensors", "safetensors"),
        (None, "diffusers", "diffusers_safetensors"),
        (None, "diffusers_safetensors", "diffusers_safetensors"),
        ("safetensors", "diffusers", "safetensors"),
        ("diffusers", "ckpt", "diffusers_safetensors"),
        ("diffusers_safetensors", "ckpt", "diffusers_safetensors"),
    ],
)
def test_use_safetensors_keeps_the_structure(asked: str | None, loaded: str, form: str) -> None:
    assert choose_form(asked, True, loaded) == form


def test_ckpt_and_safetensors_contradict_each_other() -> None:
    with pytest.raises(UserError, match="--use_safetensors: contradicts --save_model_as ckpt"):
        choose_form("ckpt", True, "safetensors")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("ckpt", "my.v1.ckpt"),
        ("safetensors", "my.v1.safetensors"),
        ("diffusers", "my.v1"),
        ("diffusers_safetensors", "my.v1"),
    ],
)
def test_the_target_lies_in_the_folder_under_its_whole_name(form: str, name: str) -> None:
    target = target_for(Path("out"), "my.v1", form)
    assert target == SaveTarget(Path("out") / name, form)
    assert is_single_file(form) == (name != "my.v1")


@pytest.mark.parametrize(
    ("name", "form", "mend"),
    [
        ("model.safetensors", "ckpt", r"let the name end in \.ckpt"),
        ("model", "safetensors", r"let the name end in \.safetensors"),
        ("model.ckpt", "diffusers", "leave the extension out"),
        ("model.SAFETENSORS", "diffusers_safetensors", "leave the extension out"),
    ],
)
def test_a_name_that_says_another_form_is_refused(name: str, form: str, mend: str) -> None:
    with pytest.raises(UserError, match=mend):
        SaveTarget(Path(name), form)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.ckpt", "ckpt"),
        ("a.b.CKPT", "ckpt"),
        ("a.safetensors", "safetensors"),
        ("a.SafeTensors", "safetensors"),
        ("folder", "diffusers_safetensors"),
        ("folder.v2", "diffusers_safetensors"),
    ],
)
def test_a_path_tells_its_form(name: str, form: str) -> None:
    assert form_of_path(Path("out") / name) == form
    assert SaveTarget(Path("out") / name, form).form == form


@pytest.mark.parametrize("form", SAVE_FORMATS)
@pytest.mark.parametrize(
    ("asked", "dtype"), [("float", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_the_precision_asked_for_is_taken(asked: str, dtype: torch.dtype, form: str) -> None:
    assert all(saved_precision(asked, loaded, form) == dtype for loaded in (torch.float32, torch.bfloat16))


@pytest.mark.parametrize(
    ("loaded", "form", "saved"),
    [
        (torch.float32, "ckpt", torch.float32),
        (torch.float16, "safetensors", torch.float16),
        (torch.bfloat16, "ckpt", torch.float16),
        (torch.bfloat16, "safetensors", torch.bfloat16),
        (torch.float8_e4m3fn, "safetensors", torch.float16),
        (torch.bfloat16, "diffusers", torch.bfloat16),
        (torch.bfloat16, "diffusers_safetensors", torch.bfloat16),
    ],
)
def test_else_the_precision_is_kept_except_what_the_web_ui_refuses_or_nothing_can_be_learned_in(
    loaded: torch.dtype, form: str, saved: torch.dtype
) -> None:
    assert saved_precision(None, loaded, form) == saved
