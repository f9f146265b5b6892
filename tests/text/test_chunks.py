"""Where captions are cut: cases made by hand. Words are the ids 1000, 1001, …, the comma 267."""

from __future__ import annotations

import pytest

from library.text.chunks import Chunks, split_plain, split_webui, without_padding

BEGIN, END, COMMA = 49406, 49407, 267
PADDING = {"sd1": 49407, "sd2": 0}


def words(count: int, start: int = 1000) -> list[int]:
    return list(range(start, start + count))


def plain(ids: list[int], count: int, family: str) -> list[list[int]]:
    return split_plain(ids, [1.5] * len(ids), count, PADDING[family]).ids


def webui(ids: list[int], count: int = 2, family: str = "sd1") -> Chunks:
    chunks = split_webui(ids, [float(i) for i in ids], count, PADDING[family])
    assert len(chunks.ids) == len(chunks.weights) == count
    assert all(len(row) == 77 for row in (*chunks.ids, *chunks.weights))
    return chunks


@pytest.mark.parametrize("family", ("sd1", "sd2"))
def test_plain_one_chunk(family: str) -> None:
    pad = PADDING[family]
    assert plain([], 1, family) == [[BEGIN, END] + [pad] * 75]
    assert plain(words(3), 1, family) == [[BEGIN, 1000, 1001, 1002, END] + [pad] * 72]
    assert plain(words(75), 1, family) == [[BEGIN, *words(75), END]]
    assert plain(words(80), 1, family) == [[BEGIN, *words(75), END]]
    assert plain([0, 1], 1, family) == [[BEGIN, 0, 1, END] + [pad] * 73]  # a chunk alone is never mended


def test_plain_sd1_chunks_close_with_the_last_id() -> None:
    assert plain(words(80), 2, "sd1") == [[BEGIN, *words(75), END], [BEGIN, *words(5, 1075), END] + [END] * 70]
    assert plain(words(3), 3, "sd1") == [[BEGIN, *words(3), END] + [END] * 72] + [[BEGIN] + [END] * 76] * 2
    first, second, third = plain(words(300), 3, "sd1")
    assert first == [BEGIN, *words(75), END]
    assert second == [BEGIN, *words(75, 1075), END]
    assert third == [BEGIN, *words(75, 1150), END]


def test_plain_sd2_mends_what_padding_breaks() -> None:
    # a full chunk before a padded one would close with padding
    assert plain(words(80), 2, "sd2") == [[BEGIN, *words(75), END], [BEGIN, *words(5, 1075), END] + [0] * 70]
    # chunks of padding alone would begin with it
    assert plain(words(3), 3, "sd2") == [[BEGIN, *words(3), END] + [0] * 72] + [[BEGIN, END] + [0] * 75] * 2
    # the end token is the 75th of text: nothing to mend in the first, the second begins with padding
    assert plain(words(74), 2, "sd2") == [[BEGIN, *words(74), END, 0], [BEGIN, END] + [0] * 75]
    # the end token begins the second chunk by itself
    assert plain(words(75), 2, "sd2") == [[BEGIN, *words(75), END], [BEGIN, END] + [0] * 75]
    # full: the row's last id is the end token
    assert plain(words(150), 2, "sd2") == [[BEGIN, *words(75), END], [BEGIN, *words(75, 1075), END]]


def test_plain_sd2_takes_an_exclamation_mark_for_padding() -> None:
    ids = [*words(74), 0, 0, *words(10)]
    assert plain(ids, 2, "sd2") == [
        [BEGIN, *words(74), 0, 0],  # the 76th id is "padding", so the row's last id stays
        [BEGIN, END, *words(10), END] + [0] * 64,
    ]
    assert plain(ids, 2, "sd1")[1] == [BEGIN, 0, *words(10), END] + [END] * 64
    weights = split_plain(ids, [1.5] * len(ids), 2, 0).weights
    assert weights[1] == [1.0, 1.0] + [1.5] * 10 + [1.0] * 65


@pytest.mark.parametrize("family", ("sd1", "sd2"))
def test_plain_weights_stand_where_their_tokens_do(family: str) -> None:
    ids = words(80)
    chunks = split_plain(ids, [float(i) for i in ids], 2, PADDING[family])
    assert chunks.weights == [[1.0, *map(float, ids[:75]), 1.0], [1.0, *map(float, ids[75:])] + [1.0] * 71]


@pytest.mark.parametrize(("count", "length", "lost"), [(1, 75, 0), (1, 80, 5), (2, 150, 0), (2, 151, 1), (3, 300, 75)])
def test_plain_counts_what_is_cut(count: int, length: int, lost: int) -> None:
    assert split_plain(words(length), [1.0] * length, count, 0).lost == lost


@pytest.mark.parametrize("family", ("sd1", "sd2"))
def test_webui_pads_each_chunk_on_its_own(family: str) -> None:
    pad = PADDING[family]
    chunks = webui(words(80), 3, family)
    assert chunks.ids == [
        [BEGIN, *words(75), END],
        [BEGIN, *words(5, 1075), END] + [pad] * 70,
        [BEGIN, END] + [pad] * 75,
    ]
    assert chunks.weights[1] == [1.0, *map(float, words(5, 1075))] + [1.0] * 71
    assert chunks.lost == 0


def test_webui_moves_the_words_behind_a_near_comma() -> None:
    ids = [*words(60), COMMA, *words(30, 2000)]
    chunks = webui(ids)
    assert chunks.ids[0] == [BEGIN, *words(60), COMMA, END] + [END] * 14
    assert chunks.ids[1] == [BEGIN, *words(30, 2000), END] + [END] * 45
    assert chunks.weights[0] == [1.0, *map(float, words(60)), 267.0] + [1.0] * 15
    assert chunks.weights[1] == [1.0, *map(float, words(30, 2000))] + [1.0] * 46


@pytest.mark.parametrize(("before", "moved"), [(55, 19), (54, 0), (73, 1), (0, 0)])
def test_webui_looks_twenty_tokens_back(before: int, moved: int) -> None:
    ids = [*words(before), COMMA, *words(90 - before - 1, 2000)]
    chunks = webui(ids)
    end = 75 - moved
    assert chunks.ids[0] == [BEGIN, *ids[:end], END] + [END] * moved
    assert chunks.ids[1][: 90 - end + 2] == [BEGIN, *ids[end:], END]


def test_webui_only_the_last_comma_counts() -> None:
    ids = [*words(58), COMMA, *words(10, 2000), COMMA, *words(20, 3000)]
    assert webui(ids).ids[0] == [BEGIN, *ids[:70], END] + [END] * 5


def test_webui_without_a_comma_cuts_after_75() -> None:
    assert webui(words(90)).ids[0] == [BEGIN, *words(75), END]


def test_webui_moves_nothing_at_the_end_of_a_run() -> None:
    comma_last = [*words(60), COMMA, *words(13, 2000), COMMA, *words(10, 3000)]
    assert webui(comma_last).ids[0] == [BEGIN, *comma_last[:75], END]
    comma_next = [*words(60), COMMA, *words(14, 2000), COMMA, *words(10, 3000)]
    chunks = webui(comma_next)
    assert chunks.ids[0] == [BEGIN, *comma_next[:75], END]
    assert chunks.ids[1][:12] == [BEGIN, *comma_next[75:86]]
    text_ends = [*words(60), COMMA, *words(14, 2000)]
    assert webui(text_ends).ids == [[BEGIN, *text_ends, END], [BEGIN] + [END] * 76]


def test_webui_moved_words_fill_the_next_chunk() -> None:
    # 61 stay, 14 move; the next chunk is full 75 tokens after them, and has a comma of its own to look back to
    ids = [*words(60), COMMA, *words(69, 2000), COMMA, *words(30, 3000)]
    chunks = webui(ids, 3)
    assert chunks.ids[0][1:62] == ids[:61]
    assert chunks.ids[1][1:72] == [*ids[61:131], END]
    assert chunks.ids[2][1:32] == [*ids[131:], END]


def test_webui_fills_the_last_chunk_and_counts_the_rest() -> None:
    ids = [*words(130), COMMA, *words(60, 3000)]
    chunks = webui(ids)
    assert chunks.ids[1] == [BEGIN, *ids[75:150], END]  # nothing moves out of the last chunk
    assert chunks.lost == 191 - 150
    assert webui([*words(60), COMMA, *words(89, 2000)]).lost == 14  # what moved leaves a gap, so 150 tokens do not fit


@pytest.mark.parametrize("length", (0, 1, 75, 100))
def test_without_padding(length: int) -> None:
    ids = words(length)
    chunks = without_padding(ids, [float(i) for i in ids])
    kept = ids[:75]
    assert chunks == Chunks([[BEGIN, *kept, END]], [[1.0, *map(float, kept), 1.0]], length - len(kept))
