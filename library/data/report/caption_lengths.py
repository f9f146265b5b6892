"""The captions by which it is judged whether all of a picture's text is read: at their longest, as they are trained."""

from __future__ import annotations

from dataclasses import replace

from library.core.randomness import generator
from library.data.captions.caption_changes import CaptionChanges, Moment, change_caption, plain_caption
from library.data.views import Views

DRAWS_SHOWN = 3


def longest_captions(views: Views, record: int) -> list[str]:
    """A picture's caption with all its tags; where wildcards are drawn, those of its first use in the first epochs.

    A caption with wildcards is never trained as it is written, and its parts together may be long though each is short.
    """
    index = views.index
    caption, changes = index.caption(record), index.folders[int(index.subset[record])].caption_changes
    if not changes.wildcard or _is_always_empty(changes):
        return [written_caption(caption, changes)]
    whole = replace(
        changes, shuffle=False, tag_dropout_rate=0.0, dropout_rate=0.0, dropout_every_n_epochs=0, warmup_step=0
    )
    drawn = []
    for epoch in range(DRAWS_SHOWN):
        draws = generator(views.drawing.seed, epoch, views.use(record, 0), "caption")  # as `Views.caption` draws
        drawn.append(change_caption(caption, whole, draws, Moment(epoch, 0, views.drawing.total_steps)))
    return drawn


def written_caption(caption: str, changes: CaptionChanges) -> str:
    """The caption as it is trained where nothing is left out, moved or drawn; empty where it is empty at every use."""
    return "" if _is_always_empty(changes) else plain_caption(caption, changes)


def _is_always_empty(changes: CaptionChanges) -> bool:
    return changes.dropout_rate >= 1 or changes.dropout_every_n_epochs == 1
