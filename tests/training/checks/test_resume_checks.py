"""What is said of `--resume` before a model is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from library.checkpoint.saves import END, SaveList
from library.checkpoint.state import read_facts, read_state, write_state
from library.core.errors import UserError
from library.options.keeping import KeepingOptions
from library.options.parse import parse_options
from library.options.record import Kind
from library.options.scripts import SCRIPTS
from library.training.checks.preflight import check_full_model_run, check_network_run
from library.training.keep.retention import KeptFiles
from library.training.resume_point import ResumePoint
from library.training.run import Run
from tests.training.keep.resumed import SAVING, cut_off_after, state_at, train_here
from tests.training.styles import CAPTION_FILES, style_words

SCRIPT = "train_network.py"
UPDATES = 3
Check = Callable[..., ResumePoint]


@pytest.fixture(scope="module")
def finished(
    tiny_models: dict[str, Path], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[str], Path]]:
    """The words of a run of three updates, and its folder with states after each."""
    root = tmp_path_factory.mktemp("finished")
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"])]
    words += style_words(CAPTION_FILES, "zumira", photos, root / "data")
    words += ["--max_data_loader_n_workers", "0", "--max_train_steps", str(UPDATES), "--learning_rate", "1e-3"]
    train_here(SCRIPT, [*words, *SAVING, "--output_dir", str(root / "out")])
    yield words, root / "out"


@pytest.fixture
def out(finished: tuple[list[str], Path], tmp_path: Path) -> Path:
    """What is left of that run when it was killed after the second update."""
    shutil.copytree(finished[1], tmp_path / "out")
    cut_off_after(tmp_path / "out", 2)
    return tmp_path / "out"


@pytest.fixture
def check(finished: tuple[list[str], Path], out: Path) -> Check:
    """Checks a run in that folder; returns where it would go on."""

    def checked(*words: str, resume: str = "latest") -> ResumePoint:
        point = checked_run([*finished[0], "--output_dir", str(out), "--resume", resume, *words]).resume
        assert point is not None
        return point

    return checked


def checked_run(words: list[str]) -> Run:
    return check_network_run(parse_options(SCRIPT, "", SCRIPTS[SCRIPT].groups, [*words, *SAVING]))


def refusal(check: Check, *words: str, resume: str = "latest") -> str:
    with pytest.raises(UserError) as caught:
        check(*words, resume=resume)
    return str(caught.value)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_the_latest_state_is_found_and_nothing_has_changed(check: Check, out: Path) -> None:
    assert check() == ResumePoint(state_at(out, 2), 2)
    assert check(resume=str(state_at(out, 1))) == ResumePoint(state_at(out, 1), 1)


def test_without_resume_there_is_nothing_to_allow(finished: tuple[list[str], Path], tmp_path: Path) -> None:
    words = [*finished[0], "--output_dir", str(tmp_path / "new")]
    assert checked_run(words).resume is None
    with pytest.raises(UserError, match="--allow_changed_options"):
        checked_run([*words, "--allow_changed_options"])


def test_states_that_are_not_there(check: Check, out: Path, tmp_path: Path) -> None:
    assert str(state_at(out, 2)) in refusal(check, resume=str(out)), "the output folder holds the state that was meant"
    assert "is not there" in refusal(check, resume=str(tmp_path / "nowhere"))
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    assert "is a file" in refusal(check, resume=str(file))
    told = refusal(check, "--output_name", "other")
    assert "no state of --output_name other" in told and str(state_at(out, 2)) in told


def test_a_torn_state_falls_back_to_the_last_good_one(check: Check, out: Path) -> None:
    flip_a_bit(state_at(out, 2) / "weights.safetensors")
    for resume in ("latest", str(state_at(out, 2))):
        point = check(resume=resume)
        assert (point.folder, point.step) == (state_at(out, 1), 1)
        assert "weights.safetensors" in " ".join(point.warnings) and "at-step00000001-state" in point.warnings[-1]


def test_a_truncated_state_falls_back_as_well(check: Check, out: Path) -> None:
    (state_at(out, 2) / "optimizer.safetensors").write_bytes(b"")
    for resume in ("latest", str(state_at(out, 2))):
        point = check(resume=resume)
        assert point.step == 1 and any("optimizer.safetensors" in text for text in point.warnings)


def test_where_all_are_torn_all_are_told(check: Check, out: Path) -> None:
    for step in (1, 2):
        flip_a_bit(state_at(out, step) / "weights.safetensors")
    told = refusal(check)
    assert "at-step00000001-state" in told and "at-step00000002-state" in told


def test_a_finished_run_is_not_resumed(finished: tuple[list[str], Path], out: Path, check: Check) -> None:
    for path in finished[1].glob("last*"):
        if path.name in ("last-state", "last.safetensors"):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, out / path.name)
    told = refusal(check)
    assert "finished" in told and "raise --max_train_steps" in told
    longer = check("--max_train_steps", "5")
    assert (longer.step, longer.changes, longer.is_exact) == (3, (), False), "a constant rate knows no length"


def test_free_options_may_change(check: Check, tmp_path: Path) -> None:
    words = ["--cache_latents", "--gradient_checkpointing", "--save_precision", "fp16", "--training_comment", "hello"]
    assert check(*words, "--max_data_loader_n_workers", "1", "--logging_dir", str(tmp_path / "logs")).is_exact


def test_deciding_options_are_all_listed_and_must_be_allowed(check: Check) -> None:
    words = ["--seed", "7", "--learning_rate", "2e-3", "--noise_offset", "0.1", "--flip_aug", "--train_batch_size", "2"]
    told = refusal(check, *words)
    listed = ["--seed: 42 -> 7", "--learning_rate: 0.001 -> 0.002", "--noise_offset: none -> 0.1", "batch_size: 1 -> 2"]
    assert all(text in told for text in [*listed, "flip_aug: False -> True", "--allow_changed_options"])
    point = check(*words, "--allow_changed_options")
    assert not point.is_exact and {change.kind for change in point.changes} == {Kind.DECIDES}
    assert all(text in "; ".join(map(str, point.changes)) for text in listed)


def test_shapes_cannot_change(check: Check) -> None:
    told = refusal(check, "--network_dim", "8", "--allow_changed_options")
    assert "--network_dim: 4 -> 8" in told and "would not fit" in told


def test_to_say_a_default_changes_nothing(check: Check) -> None:
    network = ["--network_dim", "4", "--network_alpha", "1", "--network_module", "networks.lora", "--clip_skip", "1"]
    learning = ["--optimizer_type", "adamw", "--lr_scheduler", "constant", "--max_grad_norm", "1", "--seed", "42"]
    assert check(*network, *learning).is_exact
    assert check("--optimizer_type", "torch.optim.AdamW").is_exact
    assert "torch.optim.AdamW -> lion_pytorch.Lion" in refusal(check, "--use_lion_optimizer")
    assert "torch.optim.AdamW -> SGDNesterov" in refusal(check, "--optimizer_type", "sgdnesterov")
    assert "--lr_scheduler: constant -> linear" in refusal(check, "--lr_scheduler", "Linear")


def test_what_a_run_began_with_is_kept_by_those_that_go_on(check: Check, out: Path) -> None:
    state = state_at(out, 2)
    facts = read_facts(state)
    write_state(
        state, read_state(state), {**facts, "options": {**facts["options"], "network_weights": "start.safetensors"}}
    )
    point = check()
    assert point.is_exact and point.begun_with == {"network_weights": "start.safetensors"}


def test_a_start_means_nothing_to_a_run_that_goes_on(check: Check, finished: tuple[list[str], Path]) -> None:
    told = refusal(check, "--network_weights", str(finished[1] / "last.safetensors"))
    assert "--network_weights: none -> last.safetensors" in told and "leave --network_weights out" in told


def test_changed_pictures_and_captions_count(check: Check, finished: tuple[list[str], Path]) -> None:
    folder = Path(finished[0][finished[0].index("--train_data_dir") + 1])
    caption = folder / "cat.caption"
    before = caption.read_text(encoding="utf-8")
    try:
        caption.write_text("zumira, another one", encoding="utf-8")
        assert "fingerprint of their captions" in refusal(check)
    finally:
        caption.write_text(before, encoding="utf-8")
    assert check().is_exact


def test_a_picture_of_the_same_name_and_size_counts(check: Check, finished: tuple[list[str], Path]) -> None:
    picture = Path(finished[0][finished[0].index("--train_data_dir") + 1]) / "cat.jpg"
    before = picture.read_bytes()
    try:
        picture.write_bytes(before + b"x")  # behind the end of the picture
        assert "fingerprint of their files' sizes" in refusal(check)
    finally:
        picture.write_bytes(before)
    assert check().is_exact


def test_another_base_model_counts_and_its_place_does_not(
    check: Check, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved" / "renamed.safetensors"
    moved.parent.mkdir()
    shutil.copy(tiny_models["sd1"], moved)
    assert check("--pretrained_model_name_or_path", str(moved)).is_exact
    flip_a_bit(moved)
    assert "base model: fingerprint" in refusal(check, "--pretrained_model_name_or_path", str(moved))


def test_processes_count(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "processes that train together: 1 -> 2" in refusal(check)


def test_a_length_that_the_schedule_knew_counts(check: Check, out: Path) -> None:
    """States of a cosine schedule: its rates of the first updates were those of the shorter run."""
    told = refusal(check, "--max_train_steps", "6", "--lr_scheduler", "cosine")
    assert "updates of the run: 3 -> 6" in told and "--lr_scheduler: constant -> cosine" in told
    assert not refusal_is_needed(check, "--max_train_steps", "6")


def refusal_is_needed(check: Check, *words: str) -> bool:
    try:
        check(*words)
    except UserError:
        return True
    return False


def test_another_torch_is_told(check: Check, out: Path) -> None:
    folder = state_at(out, 2)
    write_state(folder, read_state(folder), {**read_facts(folder), "torch": "1.0"})
    assert any(torch.__version__ in text and "1.0" in text for text in check().warnings)


def test_the_state_of_another_kind_of_run_is_one_sentence(
    finished: tuple[list[str], Path], out: Path
) -> None:  # fmt: skip
    words = [*finished[0], "--output_dir", str(out), "--resume", "latest"]
    with pytest.raises(UserError, match="trained a network, and this one trains a whole model") as caught:
        check_full_model_run(parse_options("train_db.py", "", SCRIPTS["train_db.py"].groups, words))
    assert len(caught.value.problems) == 1


def test_a_run_that_could_not_save_its_end_goes_on_from_the_state_of_it(
    finished: tuple[list[str], Path], out: Path, check: Check
) -> None:
    shutil.copytree(finished[1] / "last-state", out / "last-state")
    assert check() == ResumePoint(out / "last-state", UPDATES)
    shutil.copy(finished[1] / "last.safetensors", out)
    listed = SaveList.read(out, None)
    assert "finished" in refusal(check)
    listed.saves = [save for save in listed.saves if save.kind != END or save.is_state]
    listed.write()  # what stands there is of an earlier run
    assert check() == ResumePoint(out / "last-state", UPDATES)
    assert "finished" in refusal(check, "--max_train_steps", "2")


def named(state: Path, name: str | None) -> Path:
    """Says in the facts of a state whose it is."""
    write_state(state, read_state(state), {**read_facts(state), "name": name})
    return state


def test_a_resumed_run_writes_over_no_other_run(check: Check, out: Path) -> None:
    """Neither over files of another name, nor over those of an earlier run of its own name."""
    for name in ("dog.safetensors", "dog-step00000003.safetensors"):
        (out / name).touch()
    as_dog = ["--output_name", "dog"]
    told = refusal(check, *as_dog, resume=str(state_at(out, 2)))
    assert "dog-step00000003.safetensors of an earlier run would be lost" in told and "--overwrite" in told
    assert check(*as_dog, "--overwrite", resume=str(state_at(out, 2))).step == 2
    (out / "at-step00000003.safetensors").touch()  # the run was killed after this save
    assert check(resume=str(state_at(out, 2))).step == 2, "its own files are no hindrance"
    new = SaveList(out, None)
    new.pass_over([state_at(out, 1), state_at(out, 2)])
    new.write()
    assert "of an earlier run would be lost" in refusal(check, resume=str(state_at(out, 2)))


def test_the_latest_is_of_the_present_run(check: Check, out: Path) -> None:
    """Not of one that it has replaced, and not of a way that was left by resuming from before."""
    kept = KeptFiles(out, None, KeepingOptions())
    kept.begin(state_at(out, 1), 1, saves_on_way=True)
    assert check().folder == state_at(out, 1)
    shutil.copytree(state_at(out, 2), out / "at-step00000005-state")  # written, and killed before it was listed
    write_state(
        out / "at-step00000005-state", read_state(state_at(out, 2)), {**read_facts(state_at(out, 2)), "seed": 1}
    )
    assert check().folder.name == "at-step00000005-state"
    shutil.rmtree(out / "at-step00000005-state")
    KeptFiles(out, None, KeepingOptions()).begin(None, 0, saves_on_way=False)
    told = refusal(check)
    assert "last-saves.json belongs to has no state" in told and "name a state" in told
    assert str(state_at(out, 1)) in told and str(state_at(out, 2)) in told and "are of an earlier run" in told
    (out / "last-saves.json").write_text("{", encoding="utf-8")
    assert check().folder == state_at(out, 2), "without a list, by name and step"


def test_a_state_is_of_the_run_that_its_facts_name(check: Check, out: Path) -> None:
    """A run called cat-000001 ends with what looks like the first epoch of one called cat."""
    other = shutil.copytree(state_at(out, 2), out / "cat-000001-state")
    facts = {key: value for key, value in read_facts(other).items() if key != "name"}
    write_state(other, read_state(other), facts)
    assert check("--output_name", "cat").folder == other, "written before states told it"
    named(other, "cat-000001")
    assert "no state of --output_name cat" in refusal(check, "--output_name", "cat")
    assert check("--output_name", "cat-000001").folder == other
    flip_a_bit(other / "weights.safetensors")
    shutil.copytree(state_at(out, 1), out / "cat-state")
    named(out / "cat-state", "cat")
    point = check("--output_name", "cat")
    assert point.folder.name == "cat-state" and point.warnings == (), "torn states of others are not its business"


def test_in_the_place_of_a_torn_state_none_is_taken_that_is_later_or_of_another_run(check: Check, out: Path) -> None:
    first, second = state_at(out, 1), state_at(out, 2)
    flip_a_bit(first / "weights.safetensors")
    assert "at-step00000001-state" in refusal(check, resume=str(first)), "the other is later"
    named(second, "cat")
    shutil.copytree(second, out / "at-step00000003-state")
    flip_a_bit(out / "at-step00000003-state" / "weights.safetensors")
    assert "damaged" in refusal(check, resume=str(out / "at-step00000003-state")), "the facts of that one say cat"
    shutil.copytree(second, out / "cat-step00000001-state")
    named(second, None)
    (second / "facts.json").write_bytes(b"")
    assert "damaged" in refusal(check, resume=str(second)), "by its name it is no state of cat"
    torn = shutil.copytree(out / "cat-step00000001-state", out / "cat-step00000009-state")
    (torn / "facts.json").write_bytes(b"")
    point = check("--output_name", "cat", resume=str(torn))
    assert point.folder.name == "cat-step00000001-state" and "the last whole state before" in point.warnings[-1]
    unknown = torn.rename(out / "cat-state")
    assert "damaged" in refusal(check, resume=str(unknown)), "nobody knows where it stood"


def test_only_what_is_later_was_passed_over(check: Check, out: Path) -> None:
    (state_at(out, 1) / "optimizer.safetensors").write_bytes(b"")
    point = check()
    assert point.step == 2 and "optimizer.safetensors" in " ".join(point.warnings)
    assert not any("goes on from" in text for text in point.warnings)


def test_a_blank_word_is_no_folder(check: Check) -> None:
    assert "--resume" in refusal(check, resume="")
