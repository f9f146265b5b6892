"""The window of `--debug_dataset`: batch after batch as they are trained. Esc ends, S: next batch, E: next epoch.

Which batch comes next is known to `debug_walk.py`; this only draws it, and needs tkinter.
"""

from __future__ import annotations

import base64
import tkinter as tk

from library.core.sizes import Size
from library.data.report.dataset_report import BatchFacts, Source, batch_facts, views_of
from library.data.report.thumbnails import fitted, png_of, shrunk, training_pixels
from library.training.debug.walk import MOST_SHOWN, Walk, head_line

_LONGEST_SIDE = 288
_COLUMNS = 4
_HELP = "S next batch     E next epoch     Esc end"


def show_window(source: Source) -> None:
    """Opens the window; returns when it is closed."""
    Window(source).run()


class Window:
    """Draws one batch at a time."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._walk = Walk(source.planner)
        self.root = tk.Tk()
        self.root.title("sd-atelier: what will be trained")
        self._head = tk.Label(self.root, font=("TkDefaultFont", 13, "bold"), padx=12, pady=8, anchor="w")
        self._head.pack(fill="x")
        self._cells = tk.Frame(self.root, padx=8, pady=4)
        self._cells.pack(fill="both", expand=True)
        tk.Label(self.root, text=_HELP, padx=12, pady=8, anchor="w").pack(fill="x")
        self._images: list[tk.PhotoImage] = []  # Tk keeps no reference of its own
        self.root.bind("<Key>", lambda event: self.press(event.keysym))
        self._draw()

    @property
    def head(self) -> str:
        """The line above the pictures."""
        return str(self._head["text"])

    def run(self) -> None:
        """Waits for keys until the window is closed."""
        self.root.mainloop()

    def press(self, key: str) -> None:
        """What a key does."""
        if self._walk.press(key):
            self._draw()
        else:
            self.root.destroy()

    def _draw(self) -> None:
        request = self._walk.request
        batch = batch_facts(self._source, request)
        self._head["text"] = head_line(batch, request.epoch + 1, self._walk.batches)
        for child in self._cells.winfo_children():
            child.destroy()
        self._images.clear()
        looks = list(views_of(self._source, request))[:MOST_SHOWN]
        for number, (record, view) in enumerate(looks):
            cell = tk.Frame(self._cells, padx=6, pady=6)
            cell.grid(row=number // _COLUMNS, column=number % _COLUMNS, sticky="n")
            pixels = training_pixels(self._source.views, record, view)
            if pixels is None:
                tk.Label(cell, text="cannot be read").pack()
            else:
                size = fitted(Size(pixels.shape[1], pixels.shape[0]), _LONGEST_SIDE)
                data = base64.b64encode(png_of(shrunk(pixels, size)))
                self._images.append(tk.PhotoImage(master=self.root, data=data))
                tk.Label(cell, image=self._images[-1]).pack()
            tk.Label(cell, text=_use_line(batch, number), wraplength=_LONGEST_SIDE, justify="left").pack(anchor="w")


def _use_line(batch: BatchFacts, number: int) -> str:
    use = batch.uses[number]
    marks = [*(["mirrored"] if use.flipped else []), *(["regularisation"] if use.is_reg else [])]
    return (
        f"{use.name}{''.join(f', {mark}' for mark in marks)}\n{use.caption or '(empty caption)'}\n{use.tokens} tokens"
    )
