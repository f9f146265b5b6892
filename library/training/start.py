"""What a checked run does: it trains, or only shows its pictures; class images that are missing are made first."""

from __future__ import annotations

from collections.abc import Callable

from library.core.errors import once_begun
from library.options.parse import OptionValues
from library.training.prepared import take_prepared
from library.training.reg_images import needs_reg_images
from library.training.run import Run


def start(check: Callable[[OptionValues], Run], options: OptionValues) -> None:
    """Checks, then trains; with `--debug_dataset` shows what would be trained on instead, without loading a model.

    Args:
        check: the checks of the script. They are made again when class images were generated, so that the run is the
            one that would have been started with these pictures there.
        options: of the command line.

    Raises:
        UserError: with everything that the checks found.
    """
    options = take_prepared(options)
    run = check(options)
    if run.options.data.debug_dataset:
        from library.training.debug.dataset import show_dataset

        show_dataset(run)
        return
    if needs_reg_images(run):
        from library.training.reg_generation import make_reg_images  # with the model code, which takes seconds

        make_reg_images(run)
        run = check(options)
    from library.training.assemble import train

    with once_begun():
        train(run)
