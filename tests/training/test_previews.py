"""Sample pictures between updates: everything is afterwards as it was before, and what fails is told."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from library.core.errors import Problems
from library.core.sizes import Size
from library.models.tiny import make_tiny_model
from library.options.samples import SampleOptions
from library.options.text import TextOptions
from library.preview.generate import PromptReader
from library.preview.prompts import SamplePrompt
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer
from library.training.checks.samples import check_samples, default_size
from library.training.evaluation import lent_to
from library.training.painting import Painter, noise_schedule, prompt_text_options
from library.training.previews import Previews, SampleFiles, describe_samples, preview_moments
from library.training.progress import Moment, RunPlan
from library.training.requests.watch import Requests

PROMPTS = (SamplePrompt("a cat", size=Size(64, 64), seed=3, steps=2), SamplePrompt("a dog", size=Size(64, 80), steps=2))
EVERY_STEP = SampleOptions(sample_every_n_steps=1)
NOTHING_ASKED = Requests()


class Pictures:
    """A log that keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, int, str, np.ndarray]] = []

    def picture(self, step: int, epoch: int, tag: str, pixels: np.ndarray) -> None:
        self.shown.append((step, epoch, tag, pixels))


@pytest.fixture(scope="module")
def reader() -> PromptReader:
    return PromptReader.of("sd1", TextOptions())


@pytest.fixture
def painter(reader: PromptReader, fresh_accelerate: None) -> Painter:
    return Painter(
        make_tiny_model("sd1", seed=3), nn.Dropout(0.5), reader, noise_schedule("epsilon"), Accelerator(cpu=True)
    )


def previews_of(painter: Painter, folder: Path, options: SampleOptions = EVERY_STEP, **words: Any) -> Previews:
    told = {"prompts": PROMPTS, "goes_on": False, "is_main": True, **words}
    return Previews(options, files=SampleFiles(folder / "sample", "mira", {}), painter=painter, **told)


def sheet_steps(folder: Path) -> str:
    with Image.open(folder / "sample" / "mira_sheet.png") as sheet:
        return str(sheet.info["rows"]).partition(', "columns')[0]


def test_pictures_go_to_files_and_to_the_log(painter: Painter, tmp_path: Path) -> None:
    log = Pictures()
    previews_of(painter, tmp_path).make(Moment(5, 2), log)
    assert [entry[:3] for entry in log.shown] == [(5, 2, "sample/01"), (5, 2, "sample/02")]
    for (*_, pixels), name in zip(log.shown, ("mira_00000005_01_3.png", "mira_00000005_02_0.png"), strict=True):
        with Image.open(tmp_path / "sample" / name) as picture:
            assert np.array_equal(np.asarray(picture), pixels)


def test_everything_is_afterwards_as_it_was(painter: Painter, tmp_path: Path) -> None:
    """Modes, gradients, weights, number formats and random numbers; the VAE samples in float32 meanwhile."""
    models = painter.models
    nn.Module.to(models.vae, torch.bfloat16)
    models.unet.train()
    models.unet.mid_block.eval()
    models.text_encoder.eval()
    models.unet.conv_in.weight.grad = torch.ones_like(models.unet.conv_in.weight)
    parts = {"unet": models.unet, "text": models.text_encoder, "vae": models.vae, "network": painter.network}
    modes = {f"{name}.{path}": part.training for name, whole in parts.items() for path, part in whole.named_modules()}
    weights = {name: [p.detach().clone() for p in whole.parameters()] for name, whole in parts.items()}
    held = [id(p) for p in models.unet.parameters()], [p.data_ptr() for p in models.unet.parameters()]
    random_state = torch.random.get_rng_state()
    previews_of(painter, tmp_path).make(Moment(1, 1), Pictures())
    assert (tmp_path / "sample" / "mira_00000001_01_3.png").is_file()
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert modes == {
        f"{name}.{path}": part.training for name, whole in parts.items() for path, part in whole.named_modules()
    }
    assert models.vae.dtype == torch.bfloat16
    for name, whole in parts.items():
        assert all(torch.equal(p, before) for p, before in zip(whole.parameters(), weights[name], strict=True))
    assert held == ([id(p) for p in models.unet.parameters()], [p.data_ptr() for p in models.unet.parameters()])
    grads = [p.grad for p in models.unet.parameters() if p.grad is not None]
    assert len(grads) == 1 and bool((grads[0] == 1).all())


def test_a_module_that_is_lent_comes_back() -> None:
    module = nn.Linear(2, 2).to(torch.float16)
    before = module.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), lent_to(module, torch.device("meta"), torch.float32):
        assert module.weight.device.type == "meta" and module.weight.dtype == torch.float32
        module.to_empty(device="cpu")
        module.weight.data = before.float()
        module.bias.data = module.bias.data.float()
        raise KeyboardInterrupt
    assert module.weight.dtype == torch.float16 and torch.equal(module.weight, before)


def test_memory_does_not_grow(painter: Painter, tmp_path: Path) -> None:
    previews = previews_of(painter, tmp_path, prompts=PROMPTS[:1])

    def alive() -> tuple[int, int]:
        gc.collect()
        tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
        return len(tensors), sum(tensor.nelement() for tensor in tensors)

    previews.make(Moment(1, 1), Pictures())
    after_one = alive()
    for step in range(2, 11):
        previews.make(Moment(step, 1), Pictures())
    assert alive() == after_one
    assert sheet_steps(tmp_path) == '{"steps": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]'


def test_only_the_main_process_makes_them(painter: Painter, tmp_path: Path) -> None:
    previews_of(painter, tmp_path, is_main=False).make(Moment(1, 1), Pictures())
    assert not (tmp_path / "sample").exists()


def test_a_resumed_run_goes_on_with_the_sheet_and_a_new_one_does_not(painter: Painter, tmp_path: Path) -> None:
    first = previews_of(painter, tmp_path)
    for step in (1, 2, 3):
        first.make(Moment(step, 1), Pictures())
    before = (tmp_path / "sample" / "mira_00000002_01_3.png").read_bytes()
    previews_of(painter, tmp_path, goes_on=True).make(Moment(2, 1), Pictures())  # from a state after update 1
    assert sheet_steps(tmp_path) == '{"steps": [1, 2]'
    assert (tmp_path / "sample" / "mira_00000002_01_3.png").read_bytes() == before
    previews_of(painter, tmp_path).make(Moment(2, 1), Pictures())
    assert sheet_steps(tmp_path) == '{"steps": [2]'


def test_a_stop_leaves_the_rest_of_the_pictures_out(
    painter: Painter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked for while the first of two pictures is made."""
    log, previews = Pictures(), previews_of(painter, tmp_path)
    with caplog.at_level(logging.INFO):
        previews.make(Moment(5, 2), log, lambda: bool(log.shown))
    assert [entry[2] for entry in log.shown] == ["sample/01"]
    assert "the run is to stop: 1 of 2 sample pictures are left out" in caplog.text
    assert sheet_steps(tmp_path) == '{"steps": [5]'
    previews.make(Moment(6, 2), log, lambda: True)
    assert len(log.shown) == 1 and sheet_steps(tmp_path) == '{"steps": [5]'


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_one_bad_prompt_leaves_the_others(painter: Painter, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sampler that raises: nobody checked the name of this one."""
    prompts = (replace(PROMPTS[0], sampler="none"), PROMPTS[1])
    previews, log = previews_of(painter, tmp_path, prompts=prompts), Pictures()
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            previews.make(Moment(step, 1), log)
    assert [entry[2] for entry in log.shown] == ["sample/02"] * 3
    (record,) = caplog.records
    assert "no sample picture 01 of 'a cat': sampler: there is no sampler 'none'" in record.getMessage()
    assert record.getMessage().endswith("training goes on")
    assert sheet_steps(tmp_path) == '{"steps": [1, 2, 3]'


def test_a_folder_that_cannot_be_written_stops_nothing(
    painter: Painter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sample").write_text("in the way", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        previews_of(painter, tmp_path).make(Moment(1, 1), Pictures())
    assert len(caplog.records) == 2 and (tmp_path / "sample").read_text(encoding="utf-8") == "in the way"


def test_an_interruption_passes_and_leaves_the_models_in_order(painter: Painter, tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    models = painter.models
    models.unet.train()
    models.vae.decoder.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        previews_of(painter, tmp_path).make(Moment(1, 1), Pictures())
    assert models.unet.training


def test_asking_for_samples_without_prompts_is_answered(
    painter: Painter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    previews = previews_of(painter, tmp_path, SampleOptions(), prompts=())
    assert previews.due(Moment(4, 1), Requests(sample=True)) and not previews.due(Moment(4, 1), NOTHING_ASKED)
    with caplog.at_level(logging.WARNING):
        previews.make(Moment(4, 1), Pictures())
    assert "give --sample_prompts" in caplog.text and not (tmp_path / "sample").exists()


# --- when, how read, how large ----------------------------------------------------------------------------------------


def test_moments(painter: Painter, tmp_path: Path) -> None:
    first = previews_of(painter, tmp_path, SampleOptions(sample_at_first=True))
    assert first.due(Moment(0, 1), NOTHING_ASKED) and not first.due(Moment(1, 1), NOTHING_ASKED)
    assert first.due(Moment(1, 1), Requests(sample=True))
    assert not previews_of(painter, tmp_path).due(Moment(0, 1), NOTHING_ASKED)
    both = preview_moments(SampleOptions(sample_every_n_steps=3, sample_every_n_epochs=2))
    assert not both.due(Moment(3, 1)) and both.due(Moment(8, 2, ends_epoch=True))
    steps = preview_moments(SampleOptions(sample_every_n_steps=3))
    assert steps.due(Moment(3, 1)) and not steps.due(Moment(4, 2, ends_epoch=True, is_last=True))


def test_a_resumed_run_promises_no_samples_before_its_first_update(tmp_path: Path) -> None:
    options = SampleOptions(sample_at_first=True, sample_every_n_steps=3)
    assert "before the first update and every 3 updates" in describe_samples(options, 1, tmp_path, goes_on=False)
    resumed = describe_samples(options, 1, tmp_path, goes_on=True)
    assert "every 3 updates" in resumed and "before the first" not in resumed
    at_first = describe_samples(SampleOptions(sample_at_first=True), 1, tmp_path, goes_on=True)
    assert "before the first" not in at_first and "sample now" in at_first


def test_prompts_are_always_weighted_and_padded() -> None:
    assert prompt_text_options(TextOptions(clip_skip=2, no_token_padding=True)) == TextOptions(
        clip_skip=2, weighted_captions=True, restore_weighted_mean=True
    )
    captions = TextOptions(weighted_captions=True, max_token_length=150)
    assert prompt_text_options(captions) == captions


def test_prompts_have_as_many_pieces_as_they_need_and_plain_ones_are_as_ever() -> None:
    models, options = make_tiny_model("sd1", seed=3), prompt_text_options(TextOptions())
    reader = PromptReader.of("sd1", options)
    rows = {count: reader.states(models.text_encoder, ["cat " * count, ""]).shape[1] for count in (0, 75, 76, 230)}
    assert rows == {0: 77, 75: 77, 76: 152, 230: 302}
    ids, _ = CaptionTokenizer("sd1")(["a cat", ""])
    plain = CaptionEncoder(TextOptions())(models.text_encoder, ids, None)
    assert torch.equal(reader.states(models.text_encoder, ["a cat", ""]), plain)
    weighted = reader.states(models.text_encoder, ["a (cat:1.4)", ""])
    assert not torch.allclose(weighted[0], plain[0]) and torch.equal(weighted[1], plain[1])
    by_commas = PromptReader.of("sd1", replace(options, prompt_splitting="webui"))
    # two pieces by counting; cut at the comma, the words behind it need a third
    text = "cat " * 60 + ", " + "dog " * 89
    assert by_commas.states(models.text_encoder, [text]).shape[1] == 3 * 77


@pytest.mark.parametrize(
    ("resolution", "size"),
    [
        (None, (512, 512)),
        (Size(768, 512), (768, 512)),
        (Size(100, 30), (96, 64)),
        (Size(9000, 64), (4096, 64)),
    ],
)
def test_pictures_have_the_size_of_the_training(resolution: Size | None, size: tuple[int, int]) -> None:
    assert default_size(resolution) == Size(*size)


def test_checks_know_the_seed_and_the_length_of_the_run(tmp_path: Path) -> None:
    file, problems = tmp_path / "prompts.txt", Problems()
    file.write_text("a cat\na dog", encoding="utf-8")
    options = SampleOptions(sample_prompts=str(file), sample_every_n_epochs=2, sample_every_n_steps=900)
    plan = RunPlan(20, 10, 10, 2, 2, 1, 1)
    prompts = check_samples(options, -1, Size(64, 128), plan, problems)
    assert not problems and [prompt.seed for prompt in prompts] == [2**63 - 1, 0]
    assert {prompt.size for prompt in prompts} == {Size(64, 128)}
    check_samples(replace(options, sample_every_n_epochs=3), 0, None, plan, problems)
    check_samples(options, 0, None, replace(plan, total_updates=19, whole_epochs=1), problems)
    assert [problem.where for problem in problems] == ["--sample_every_n_epochs"] * 2
    assert "has 1 whole epochs, so no sample would be made after 2" in str(list(problems)[1])
    assert len(check_samples(replace(options, sample_every_n_epochs=3), 0, None, None, Problems())) == 2
    at_wish = check_samples(SampleOptions(sample_prompts=str(file)), 0, None, plan, problems)
    assert len(at_wish) == 2 and len(problems) == 2
