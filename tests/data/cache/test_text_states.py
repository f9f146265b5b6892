"""Text states that are kept: one for each caption in memory, one file for each picture on disk."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from library.core.errors import UserError
from library.data.cache.entry_paths import EntryPaths
from library.data.cache.text_files import (
    FINGERPRINT,
    TextFingerprint,
    TextState,
    read_texts,
    refuse_unknown_texts,
    write_texts,
)
from library.data.cache.text_states import (
    DiskTextStore,
    MemoryTextStore,
    TextFiles,
    TextReuse,
    constant_caption,
    fill_disk_texts,
    fill_memory_texts,
)
from library.data.captions.caption_changes import CaptionChanges
from library.data.dataset import TrainingDataset
from library.data.index.index import ImageIndex
from library.data.planner import BatchRequest
from tests.data.cache.cache_helpers import Gathered
from tests.data.data_helpers import (
    index_of,
    make_dataset,
    make_subset,
    make_world,
    noise_of,
    save_picture,
    toy_tokenize,
    views_of,
)


class ToyEncoder:
    """A stand-in for the text encoder; it keeps the captions it was asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, caption: str) -> Tensor:
        self.seen.append(caption)
        numbers = torch.tensor([*caption.encode(), *[0] * 40][:40], dtype=torch.float32)
        return (numbers[:, None] * torch.tensor([0.1, 1.0, -3.0])).sin()


def captioned_world(root: Path) -> ImageIndex:
    """Five pictures, two of which share a caption, and three with class tokens."""
    captions = ["a cat, outdoors", "a cat, asleep", "a cat, outdoors", "a dog", ""]
    for seed, caption in enumerate(captions):
        save_picture(root / "files" / f"{seed}.png", seed=seed)
        (root / "files" / f"{seed}.txt").write_text(caption, encoding="utf-8")
    for seed in range(3):
        save_picture(root / "named" / f"n{seed}.png", seed=seed)
    prefixed = CaptionChanges(prefix="photo of", keep_tokens=1)
    files = make_subset(root / "files", caption_changes=prefixed, class_tokens="", allow_missing_captions=True)
    return index_of(make_dataset(files, make_subset(root / "named"), batch_size=2))


def assert_holds_all(store: MemoryTextStore | DiskTextStore, index: ImageIndex) -> None:
    for record in range(len(index)):
        found = store.get(record)
        assert torch.equal(found, ToyEncoder()(constant_caption(index, record))) and found.dtype == torch.float32


def test_captions_are_kept_as_they_are_trained(tmp_path: Path) -> None:
    index, encoder, calls = captioned_world(tmp_path), ToyEncoder(), list[tuple[int, int]]()
    store = fill_memory_texts(index, encoder, progress=lambda done, total: calls.append((done, total)))
    assert encoder.seen == [
        "photo of a cat, outdoors", "photo of a cat, asleep", "photo of a dog", "photo of", "shs dog"
    ]  # fmt: skip
    assert calls == [(done, 5) for done in range(1, 6)]
    assert_holds_all(store, index)
    assert_holds_all(pickle.loads(pickle.dumps(store)), index)


def test_captions_that_are_always_dropped_are_empty(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    for changes in (CaptionChanges(dropout_rate=1.0), CaptionChanges(dropout_every_n_epochs=1)):
        encoder = ToyEncoder()
        fill_memory_texts(index_of(make_dataset(make_subset(tmp_path, caption_changes=changes))), encoder)
        assert not changes.varies and encoder.seen == [""]


def test_batches_carry_the_states(tmp_path: Path) -> None:
    index = captioned_world(tmp_path)
    store = fill_memory_texts(index, ToyEncoder())
    views = views_of(index, 3)
    dataset = TrainingDataset(views, toy_tokenize, noise_of(views), None, store)
    batch = dataset[BatchRequest(0, 0, records=(1, 6), repeats=(0, 0), closes_update=True, loss_scale=1.0)]
    assert batch.text_states is not None and torch.equal(batch.text_states[0], ToyEncoder()("photo of a cat, asleep"))
    assert torch.equal(batch.text_states[1], ToyEncoder()("shs dog"))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_processes_share_the_captions_and_have_all_of_them(tmp_path: Path, count: int) -> None:
    index, gathered, seen = captioned_world(tmp_path), Gathered(count), list[str]()
    for number in range(count):
        encoder = ToyEncoder()
        fill_memory_texts(index, encoder, gathered.process(number))
        seen += encoder.seen[number > 0 :]  # all look at the first one's shape
    assert sorted(seen) == sorted({constant_caption(index, record) for record in range(len(index))})
    assert_holds_all(fill_memory_texts(index, ToyEncoder(), gathered.joined(0)), index)


def _files(index: ImageIndex, encoder: str = "ab", reading: str = "plain") -> TextFiles:
    return TextFiles(index, EntryPaths(index), encoder, reading)


def _fill(files: TextFiles, workers: int = 0) -> tuple[DiskTextStore, TextReuse, ToyEncoder]:
    encoder = ToyEncoder()
    return *fill_disk_texts(files, encoder, workers), encoder


def _reasons(reuse: TextReuse) -> dict[TextState, int]:
    return {state: number for state, number in reuse.counts.items() if number}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_second_start_encodes_nothing(tmp_path: Path, workers: int) -> None:
    index = captioned_world(tmp_path)
    store, reuse, encoder = _fill(_files(index), workers)
    assert _reasons(reuse) == {TextState.MISSING: 8} and len(encoder.seen) == 5
    assert reuse.line() == "text states on disk: 0 reused, 8 written (8 not there yet)"
    assert_holds_all(store, index)
    store, reuse, encoder = _fill(_files(index), workers)
    assert _reasons(reuse) == {TextState.FITS: 8} and encoder.seen == []
    assert reuse.line() == "text states on disk: 8 reused, 0 written"
    assert_holds_all(store, index)
    assert {path.name for path in (tmp_path / "named").glob("*.npz")} == {f"n{n}.te.npz" for n in range(3)}


def test_what_changed_is_encoded_again_and_nothing_else(tmp_path: Path) -> None:
    _fill(_files(captioned_world(tmp_path)))
    (tmp_path / "files" / "3.txt").write_text("a wolf", encoding="utf-8")
    torn = tmp_path / "files" / "1.te.npz"
    torn.write_bytes(torn.read_bytes()[:300])
    index = index_of(
        make_dataset(
            make_subset(
                tmp_path / "files",
                caption_changes=CaptionChanges(prefix="photo of"),
                class_tokens="",
                allow_missing_captions=True,
            ),
            make_subset(tmp_path / "named"),
        )
    )
    store, reuse, _ = _fill(_files(index))
    assert _reasons(reuse) == {TextState.FITS: 6, TextState.CAPTION: 1, TextState.DAMAGED: 1}
    assert_holds_all(store, index)
    assert _reasons(_fill(_files(index, encoder="cd"))[1]) == {TextState.ENCODER: 8}
    assert _reasons(_fill(_files(index, "cd", "weighted"))[1]) == {TextState.READING: 8}


def test_an_entry_that_changes_during_the_run_is_not_used(tmp_path: Path) -> None:
    index = captioned_world(tmp_path)
    store, _, _ = _fill(_files(index))
    (tmp_path / "files" / "2.te.npz").unlink()
    with pytest.raises(UserError, match="not those of the start any more") as caught:
        store.get(2)
    assert caught.value.problems[0].where == str(tmp_path / "files" / "2.te.npz")


def test_processes_fill_one_folder(tmp_path: Path) -> None:
    index, gathered = make_world(tmp_path), Gathered(3)
    for number in range(3):
        fill_disk_texts(_files(index), ToyEncoder(), 0, gathered.process(number))
    store, reuse, _ = _fill(_files(index))
    assert reuse.encoded == 0
    assert_holds_all(store, index)


FINGER = TextFingerprint("ab", "cd", "plain")
STATES = np.random.default_rng(0).standard_normal((77, 16)).astype(np.float32)


def test_no_flipped_bit_reaches_the_training(tmp_path: Path) -> None:
    path, draws = tmp_path / "cat.te.npz", np.random.default_rng(1)
    write_texts(path, STATES, FINGER)
    whole, damaged = path.read_bytes(), 0
    for place in draws.integers(0, len(whole), 200):
        content = bytearray(whole)
        content[place] ^= 1 << int(draws.integers(8))
        path.write_bytes(content)
        try:
            found = read_texts(path, FINGER)
        except UserError:  # the bit made another name of the first field
            continue
        damaged += found.state is TextState.DAMAGED
        assert found.states is None or np.array_equal(found.states, STATES)
    assert damaged > 130


def test_a_torn_file_is_known_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "cat.te.npz"
    write_texts(path, STATES, FINGER)
    whole = path.read_bytes()
    for length in range(0, len(whole), 101):
        path.write_bytes(whole[:length])
        assert read_texts(path, FINGER).state is TextState.DAMAGED
        refuse_unknown_texts(path)


def test_the_format_counts(tmp_path: Path) -> None:
    path = tmp_path / "cat.te.npz"
    write_texts(path, STATES, FINGER)
    assert read_texts(path, replace(FINGER, format=9)).state is TextState.FORMAT
    with np.load(path, allow_pickle=False) as fields:
        assert set(fields.files) == {FINGERPRINT, "text_states"} and np.array_equal(fields["text_states"], STATES)


@pytest.mark.parametrize("states", [np.full_like(STATES, np.nan), STATES.astype(np.float16), STATES[0]])
def test_states_that_cannot_be_ours_are_never_stored(tmp_path: Path, states: np.ndarray) -> None:
    with pytest.raises(UserError, match="does not hold what was written"):
        write_texts(tmp_path / "cat.te.npz", states, FINGER)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_cache_are_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "cat.te.npz"
    np.savez(path, latents=STATES)
    before = path.read_bytes()
    for look in (refuse_unknown_texts, lambda file: read_texts(file, FINGER)):
        with pytest.raises(UserError) as caught:
            look(path)
        assert caught.value.problems[0].where == str(path)
    assert path.read_bytes() == before
