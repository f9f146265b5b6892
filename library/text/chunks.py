"""How the tokens of a caption are laid out in rows for CLIP, which reads 77 ids at once: begin, 75 of text, end.

A caption of up to 75 tokens is one row. Longer ones become several rows that are encoded one by one; where they are cut
is either a matter of counting (`split_plain`, what the public training tools do) or of commas (`split_webui`). SD1 pads
with the end token, SD2 with `!` (id 0).
"""

from __future__ import annotations

from dataclasses import dataclass

from library.options.text import CHUNK_TOKENS

BEGIN_ID = 49406
END_ID = 49407
COMMA_ID = 267  # a comma that ends a word, the only comma the Web UI looks for
ROW_LENGTH = CHUNK_TOKENS + 2
COMMA_REACH = 20  # tokens that the Web UI looks back for a comma, the comma included

_NEUTRAL = 1.0  # weight of begin, end and padding


@dataclass(frozen=True)
class Chunks:
    """The rows of one caption.

    Attributes:
        ids: `(n, L)`, begin first in each row.
        weights: `(n, L)`, what the text state of each id is multiplied by.
        lost: how many tokens did not fit.
    """

    ids: list[list[int]]
    weights: list[list[float]]
    lost: int


def split_plain(ids: list[int], weights: list[float], count: int, padding_id: int) -> Chunks:
    """Cuts after every 75 tokens: begin + 75 ids + the last id of the whole row, as the public training tools do.

    With several chunks they mend what their padding breaks: a chunk full of text that would close with padding closes
    with the end token, and one that would begin with padding begins with the end token. Both concern SD2 only; a `!` of
    the text has the id of its padding and is taken for it.

    Args:
        ids, weights: of the text alone, of equal length; what is beyond `75 * count` is cut off.
        count: how many chunks, at least 1.
        padding_id: id of the family's padding token.
    """
    length = CHUNK_TOKENS * count
    kept = min(len(ids), length)
    row = [*ids[:kept], END_ID] + [padding_id] * (length - kept)  # all that follows the begin token
    row_weights = weights[:kept] + [_NEUTRAL] * (length - kept)
    chunks: list[list[int]] = []
    chunk_weights: list[list[float]] = []
    for start in range(0, length, CHUNK_TOKENS):
        chunk = [BEGIN_ID, *row[start : start + CHUNK_TOKENS], row[-1]]
        scale = [_NEUTRAL, *row_weights[start : start + CHUNK_TOKENS], _NEUTRAL]
        if count > 1:
            _mend(chunk, scale, padding_id)
        chunks.append(chunk)
        chunk_weights.append(scale)
    return Chunks(chunks, chunk_weights, len(ids) - kept)


def split_webui(ids: list[int], weights: list[float], count: int, padding_id: int) -> Chunks:
    """Cuts as the Web UI does with prompts: words behind a comma stay together where they can.

    When a chunk is full, the text goes on with anything but a comma, and the last comma is at most 20 tokens back, the
    tokens behind that comma move to the next chunk. Each chunk is begin, text, end, padding; missing ones hold no text.
    Nothing moves out of the last chunk, for there is no next one.

    Args:
        ids, weights: of the text alone, of equal length.
        count: how many chunks there are, at least 1.
        padding_id: id of the family's padding token.
    """
    chunks: list[list[int]] = []
    chunk_weights: list[list[float]] = []
    start = 0
    for index in range(count):
        end = _webui_end(ids, start) if index + 1 < count else min(start + CHUNK_TOKENS, len(ids))
        missing = CHUNK_TOKENS - (end - start)
        chunks.append([BEGIN_ID, *ids[start:end], END_ID] + [padding_id] * missing)
        chunk_weights.append([_NEUTRAL, *weights[start:end], _NEUTRAL] + [_NEUTRAL] * missing)
        start = end
    return Chunks(chunks, chunk_weights, len(ids) - start)


def without_padding(ids: list[int], weights: list[float]) -> Chunks:
    """One row as long as the text needs, at most 77: begin, text, end."""
    kept = min(len(ids), CHUNK_TOKENS)
    row = [BEGIN_ID, *ids[:kept], END_ID]
    return Chunks([row], [[_NEUTRAL, *weights[:kept], _NEUTRAL]], len(ids) - kept)


def _mend(chunk: list[int], weights: list[float], padding_id: int) -> None:
    """Puts the end token where a chunk of several lacks one; see `split_plain`."""
    if chunk[-2] not in (END_ID, padding_id):
        chunk[-1] = END_ID
    if chunk[1] == padding_id:
        chunk[1] = END_ID
        weights[1] = _NEUTRAL


def _webui_end(ids: list[int], start: int) -> int:
    """Where the chunk that begins at token `start` ends."""
    end = start + CHUNK_TOKENS
    if end >= len(ids) or ids[end] == COMMA_ID:
        return min(end, len(ids))
    for position in range(end - 1, end - COMMA_REACH - 1, -1):
        if ids[position] == COMMA_ID:
            return position + 1
    return end
