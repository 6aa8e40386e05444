"""Clips of the hub as they arrive, without a copy on disk.

A stream has no order to be asked for, so what is promised of it is less: clips come shuffled within a buffer,
sources are drawn from in proportion to their weights whatever their sizes, lengths are sorted within what the
buffer holds, clips that cannot be used are passed over and counted as they come, and a resumed run starts its
streams anew, in another order, instead of going on at the clip where it stopped.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from canvas_asr.errors import DataError
from canvas_asr.hub_sets import load_table, stream_clips
from canvas_asr.manifest import Clip

from .batches import PASSED_OVER
from .selection import ClipLimits
from .sources import COMMON_VOICE, DataSource, duration_s, read_source
from .speech_data import SpeechDataset

_FIRST_LOOK = 200  # clips of a source that may be unusable before it counts as such


class StreamDataset(Dataset[dict[str, Any]]):
    """A stream behind the interface of a dataset: whatever index is asked for, the next example comes.

    Each data-loader worker of each process reads a part of its own.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        limits: ClipLimits,
        examples: SpeechDataset,
        *,
        seed: int,
        buffer_size: int,
        batch_size: int,
        process: int = 0,
        n_processes: int = 1,
    ) -> None:
        """Set up; nothing is read before the first example.

        Args:
            sources: Of the recipe; manifests and Common Voice are read whole and shuffled.
            limits: What can be used.
            examples: Makes examples of clips.
            seed: Of the order.
            buffer_size: Clips held.
            batch_size: Clips that follow one another by length.
            process: Which of several this is.
            n_processes: How many there are.
        """
        self.sources = sources
        self.limits = limits
        self.examples = examples
        self.seed = seed
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.process = process
        self.n_processes = n_processes
        self.dropped: Counter[str] = Counter()  # by source and reason, since the last example
        self._clips: Iterator[Clip] | None = None
        self._tables: dict[str, dict[str, Any]] = {}  # opened, by source and configuration

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """Make the next example; the index gives its augmentation, and the first one the order.

        ``passed_over`` beside it counts the clips that could not be used since the example before.
        """
        rng = np.random.default_rng((self.seed, *index))
        if self._clips is None:
            self._clips = self.clips(rng)
        example = self.examples.example(next(self._clips), rng)
        passed_over, self.dropped = dict(self.dropped), Counter()
        return {**example, PASSED_OVER: passed_over}

    def clips(self, rng: np.random.Generator) -> Iterator[Clip]:
        """Give clips without end, mixed, shuffled and sorted in runs of a batch."""
        streams = [
            self._endless(source, np.random.default_rng(rng.integers(1 << 32))) for source in self.sources
        ]
        weights = np.array([source.weight for source in self.sources])
        buffer: list[Clip] = []
        while True:
            while len(buffer) < self.buffer_size:
                buffer.append(next(streams[int(rng.choice(len(streams), p=weights / weights.sum()))]))
            # Half of the buffer goes out, so that what comes in meets what was there.
            order = rng.permutation(len(buffer))
            out, buffer = ([buffer[i] for i in part] for part in np.split(order, [max(1, len(order) // 2)]))
            out.sort(key=duration_s)
            starts = np.arange(0, len(out), self.batch_size)
            rng.shuffle(starts)
            for start in starts:
                yield from out[start : start + self.batch_size]

    def _endless(self, source: DataSource, rng: np.random.Generator) -> Iterator[Clip]:
        """Usable clips of a source, again and again."""
        while True:
            n_seen = n_usable = 0
            unusable: Counter[str] = Counter()
            for clip in self._once(source, rng):
                n_seen += 1
                reason = self.limits.reasons([clip], source)[0]
                if reason:
                    unusable[reason] += 1
                    self.dropped[f"{source.name}: {reason}"] += 1
                else:
                    n_usable += 1
                    # A weight above 1 of a language repeats its clips, one below passes some over.
                    yield from [clip] * int(source.language_weights.get(clip.language, 1.0) + rng.random())
                if n_seen >= _FIRST_LOOK and not n_usable:
                    break
            if not n_usable:
                counts = ", ".join(f"{n} {reason}" for reason, n in unusable.items()) or "none at all"
                raise DataError(f"{source.name}: none of its first {n_seen} clips can be used ({counts}).")

    def _once(self, source: DataSource, rng: np.random.Generator) -> Iterator[Clip]:
        worker = get_worker_info()
        n_workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        part, n_parts = self.process * n_workers + number, self.n_processes * n_workers
        if not source.set or source.set == COMMON_VOICE:
            clips = read_source(source)
            yield from (clips[i] for i in rng.permutation(len(clips))[part::n_parts])
            return
        request = source.request(streaming=True)
        configs = request.parts()
        for i in rng.permutation(len(configs)):
            config, language = configs[i]
            if config not in self._tables.setdefault(source.name, {}):
                self._tables[source.name][config] = load_table(request, config)
            table = self._tables[source.name][config]
            by_files = table.num_shards >= n_parts
            seed = int(rng.integers(1 << 31))
            # For one file alone `datasets` would start threads, and sleep for seconds when they end.
            if by_files and table.num_shards > 1:
                table = table.shuffle(seed=seed, buffer_size=1)  # the order of files
                table = table.shard(n_parts, part)
            rows = itertools.islice(_rows(table), 0 if by_files else part, None, 1 if by_files else n_parts)
            yield from stream_clips(rows, request, config, language)


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    """Rows of a stream, all of them: iterated by rows in a worker, ``datasets`` would give a part only."""
    for batch in table.iter(batch_size=16):
        names = list(batch)
        yield from (dict(zip(names, cells, strict=True)) for cells in zip(*batch.values(), strict=True))
