"""What a checked run does: it trains, or only shows its pictures."""

from __future__ import annotations

from library.training.run import Run


def start(run: Run) -> None:
    """Trains; with `--debug_dataset` shows what would be trained on instead, without loading a model."""
    if run.options.data.debug_dataset:
        from library.training.debug_dataset import show_dataset

        show_dataset(run)
        return
    from library.training.assemble import train  # with the model code, which takes seconds to import

    train(run)
