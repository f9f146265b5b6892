"""Words that mean nothing, strewn into the captions that the toy world's text encoder learns from."""

from __future__ import annotations

from examples.toy_world.train_text_encoder import strewn
from library.core.randomness import NO_EPOCH, generator
from library.text.tokenizer import CaptionTokenizer

CAPTION = "a large red ring on the left, sky background"


def test_strewn_rows_keep_their_words_and_the_others_stay_as_they_are() -> None:
    ids = CaptionTokenizer("sd1")([CAPTION] * 400)[0][:, 0]
    plain, end = ids[0].tolist(), int(ids[0].max())
    found, stray = strewn(ids, generator(0, NO_EPOCH, "strewn", "test"))
    assert found.shape == ids.shape
    assert 0.1 < float(stray.float().mean()) < 0.3
    words = plain[1 : plain.index(end)]
    for row, is_stray in zip(found.tolist(), stray.tolist(), strict=True):
        said = row[1 : row.index(end)]
        assert row[0] == plain[0] and set(row[row.index(end) :]) == {end}
        assert [word for word in said if word in words] == words
        assert (len(said) - len(words) in (1, 2)) if is_stray else (row == plain)
