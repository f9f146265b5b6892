"""The plan of an epoch: which pictures form which batch, in what order, and where updates end. Pure arithmetic.

A round is one micro-batch on every process; a group is the `accumulation` rounds of one update. The trainer computes
`loss * loss_scale / accumulation` for each micro-batch and gradients are averaged over the processes, so with
`loss_scale = (accumulation * processes) / real micro-batches` every update is the mean over its real micro-batches,
also the last, partial one of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from library.core.randomness import generator
from library.data.index.index import ImageIndex
from library.data.placement import Placements
from library.data.uses import DatasetUses, IntColumn, Samples, join


@dataclass(frozen=True)
class BatchRequest:
    """All that a loader worker needs to build one micro-batch.

    Attributes:
        epoch: epoch number from 0.
        position: number of the micro-batch within the epoch, counted over all processes.
        records: the pictures.
        repeats: which use of that picture within the epoch this is, so that each use has its own random draws.
        closes_update: an optimizer step follows on this micro-batch.
        loss_scale: factor of its loss; 0 for a copy that only keeps processes in step.
        step: number of the update, from 0, that it belongs to.
        closes_epoch: it is the last one of its epoch on its process.
    """

    epoch: int
    position: int
    records: tuple[int, ...]
    repeats: tuple[int, ...]
    closes_update: bool
    loss_scale: float
    step: int = 0
    closes_epoch: bool = False


class EpochPlan(Sequence[BatchRequest]):
    """The requests of one epoch for all processes, made when asked for: a million of them need no objects before."""

    def __init__(
        self,
        epoch: int,
        first_step: int,
        samples: Samples,
        batch_ends: IntColumn,
        accumulation: int,
        process_count: int,
    ) -> None:
        self._epoch = epoch
        self._first_step = first_step
        self._samples = samples
        self._ends = batch_ends
        self._accumulation = accumulation
        self._process_count = process_count
        self._rounds = -(-len(batch_ends) // process_count)

    def __len__(self) -> int:
        return self._rounds * self._process_count

    @overload
    def __getitem__(self, position: int) -> BatchRequest: ...
    @overload
    def __getitem__(self, position: slice) -> list[BatchRequest]: ...
    def __getitem__(self, position: int | slice) -> BatchRequest | list[BatchRequest]:
        if isinstance(position, slice):
            return [self._request(number) for number in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        return self._request(position % len(self))

    def _request(self, position: int) -> BatchRequest:
        real_batches = len(self._ends)
        batch = min(position, real_batches - 1)
        start = int(self._ends[batch - 1]) if batch else 0
        end = int(self._ends[batch])
        round_number = position // self._process_count
        group_size = self._accumulation * self._process_count
        group_start = position // group_size * group_size
        real_in_group = min(group_size, real_batches - group_start)
        return BatchRequest(
            epoch=self._epoch,
            position=position,
            records=tuple(self._samples.records[start:end].tolist()),
            repeats=tuple(self._samples.repeats[start:end].tolist()),
            closes_update=(round_number + 1) % self._accumulation == 0 or round_number + 1 == self._rounds,
            loss_scale=group_size / real_in_group if position < real_batches else 0.0,
            step=self._first_step + position // group_size,
            closes_epoch=round_number + 1 == self._rounds,
        )


class Planner:
    """Plans epochs; the same arguments always give the same plan.

    Args:
        index: all pictures.
        placements: their buckets.
        batch_sizes: pictures per micro-batch, for each dataset.
        seed: the run's seed.
        accumulation: micro-batches per update on each process.
        process_count: processes that train together.
    """

    def __init__(
        self,
        index: ImageIndex,
        placements: Placements,
        batch_sizes: Sequence[int],
        seed: int,
        accumulation: int = 1,
        process_count: int = 1,
    ) -> None:
        self._placements = placements
        self._batch_sizes = tuple(batch_sizes)
        self._seed = seed
        self.accumulation = accumulation
        self.process_count = process_count
        self._uses = [DatasetUses(index, number, seed) for number in range(len(index.datasets))]

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of epoch 0 over all processes; others can differ by a few where pictures take turns."""
        return self.batches_in_epoch(0)

    @property
    def updates_per_epoch(self) -> int:
        """Updates of epoch 0; see `batches_per_epoch`."""
        return self.updates_in_epoch(0)

    def batches_in_epoch(self, epoch: int) -> int:
        """Micro-batches over all processes, without the copies that fill up the last round."""
        counts = np.bincount(self._placements.bucket[self.epoch_samples(epoch).records])
        return sum(-(-int(count) // self._batch_size(bucket)) for bucket, count in enumerate(counts))

    def updates_in_epoch(self, epoch: int) -> int:
        return -(-self.batches_in_epoch(epoch) // (self.accumulation * self.process_count))

    def updates_in_epochs(self, epochs: int) -> int:
        """Updates of the first `epochs` epochs together."""
        if all(uses.is_same_every_epoch for uses in self._uses):
            return epochs * self.updates_in_epoch(0)
        return sum(self.updates_in_epoch(epoch) for epoch in range(epochs))

    def place_of(self, updates: int) -> tuple[int, int]:
        """The epoch that the next update belongs to after so many, and how many updates of it are done."""
        if all(uses.is_same_every_epoch for uses in self._uses):
            return divmod(updates, self.updates_in_epoch(0))
        epoch, left = 0, updates
        while left >= (length := self.updates_in_epoch(epoch)):
            epoch, left = epoch + 1, left - length
        return epoch, left

    def reg_uses_per_epoch(self, dataset: int) -> tuple[int, int]:
        """How many regularisation uses epoch 0 of a dataset has, and how many there are (pictures x repeats)."""
        uses = self._uses[dataset]
        return (uses.training_uses_before(1) if uses.reg_uses else 0), uses.reg_uses

    def epoch_plan(self, epoch: int, first_step: int = 0) -> EpochPlan:
        """All micro-batches of an epoch, for all processes, in the order of training; `first_step` is its first update.

        Uses are shuffled within their bucket and cut into batches; then the buckets' batches are mixed without changing
        the order within a bucket. So the shuffle depends neither on the batch size nor on the process count, and with
        one bucket two batches of 1 hold the same pictures as one batch of 2.
        """
        samples = self.epoch_samples(epoch)
        bucket_of_use = self._placements.bucket[samples.records]
        by_bucket = np.argsort(bucket_of_use, kind="stable")
        counts = np.bincount(bucket_of_use, minlength=len(self._placements.buckets))
        starts = np.concatenate([[0], np.cumsum(counts)])
        shuffled = [
            by_bucket[starts[bucket] : starts[bucket + 1]][self._bucket_order(epoch, bucket, int(count))]
            for bucket, count in enumerate(counts)
        ]
        order, ends = self._mix(epoch, shuffled)
        arranged = Samples(samples.records[order], samples.repeats[order])
        return EpochPlan(epoch, first_step, arranged, ends, self.accumulation, self.process_count)

    def _mix(self, epoch: int, shuffled: Sequence[IntColumn]) -> tuple[IntColumn, IntColumn]:
        """Mixes the batches of all buckets; returns all uses in batch order and the end of each batch among them."""
        lengths_by_bucket = [
            _batch_lengths(len(uses), self._batch_size(bucket)) for bucket, uses in enumerate(shuffled)
        ]
        bucket_of_batch = np.repeat(np.arange(len(shuffled)), [len(lengths) for lengths in lengths_by_bucket])
        bucket_of_batch = generator(self._seed, epoch, "buckets", "order").permutation(bucket_of_batch)
        lengths = np.empty(len(bucket_of_batch), dtype=np.int64)
        # A stable sort by bucket finds the places of each bucket, first to last: its batches and uses keep their order.
        lengths[np.argsort(bucket_of_batch, kind="stable")] = np.concatenate(lengths_by_bucket)
        bucket_of_use = np.repeat(bucket_of_batch, lengths)
        order = np.empty(len(bucket_of_use), dtype=np.int64)
        order[np.argsort(bucket_of_use, kind="stable")] = np.concatenate(shuffled)
        return order, np.cumsum(lengths)

    def _bucket_order(self, epoch: int, bucket: int, count: int) -> IntColumn:
        key = f"{self._placements.bucket_dataset[bucket]}/{self._placements.buckets[bucket]}"
        return generator(self._seed, epoch, key, "order").permutation(count)

    def _batch_size(self, bucket: int) -> int:
        return self._batch_sizes[self._placements.bucket_dataset[bucket]]

    def epoch_samples(self, epoch: int) -> Samples:
        """Every use of an epoch, in no particular order."""
        return join([uses.in_epoch(epoch) for uses in self._uses])


class RequestStream:
    """The requests of one process, epoch after epoch without a break, up to a total number of updates.

    Serves as the `sampler` of a DataLoader: workers start once and read ahead across the ends of epochs.
    """

    def __init__(self, planner: Planner, process_index: int, total_updates: int) -> None:
        """`total_updates` counts from the start of the run, not from where `seek` puts the stream."""
        self._planner = planner
        self._process_index = process_index
        self._total_updates = total_updates
        self._start = (0, 0)

    def seek(self, epoch: int, update_in_epoch: int) -> None:
        """The next iteration begins after `update_in_epoch` updates of `epoch`."""
        self._start = (epoch, update_in_epoch)

    def __iter__(self) -> Iterator[BatchRequest]:
        epoch, skipped = self._start
        done = self._planner.updates_in_epochs(epoch) + skipped
        while done < self._total_updates:
            plan = self._planner.epoch_plan(epoch, done - skipped)
            group_size = self._planner.accumulation * self._planner.process_count
            first = skipped * group_size + self._process_index
            for position in range(first, len(plan), self._planner.process_count):
                request = plan[position]
                yield request
                done += request.closes_update
                if done == self._total_updates:
                    return
            epoch, skipped = epoch + 1, 0


def _batch_lengths(uses: int, batch_size: int) -> IntColumn:
    """The batches of one bucket: full ones, and what is left over."""
    lengths = np.full(-(-uses // batch_size), batch_size, dtype=np.int64)
    lengths[-1:] -= len(lengths) * batch_size - uses
    return lengths
