"""Which samples form which step, as a function of (seed, epoch, step)."""

from collections.abc import Sequence

import numpy as np

from codemae.data.draws import Draw
from codemae.data.index import Index
from codemae.data.randomness import counter_rng
from codemae.modality import MODALITY_NAMES, get_modality

_USES = ("both", "paired", "unpaired")


class PretrainSampler:
    """Global batches, each wholly paired or wholly unpaired, at random access.

    Paired rows are shuffled each epoch. Unpaired samples join an optical and a SAR row that have nothing to
    do with each other: both lists are shuffled independently and the shorter is gone through again, newly
    shuffled, until the longer ends; where one side has no unpaired images at all, those of the paired rows
    stand in. Steps of both kinds are interleaved by a shuffle. What does not fill a batch is left for
    another epoch's order. Nothing depends on the number of processes.

    With a single modality there are no pairs: every row that has it is a sample.

    Args:
        index: The rows.
        global_batch: Samples of one optimizer step, over all processes and accumulation steps.
        seed: The run's seed.
        use: ``both``, ``paired`` or ``unpaired``.
        modalities: What a sample needs; those of the method's views.
        repeats: How many crops of a sample one batch holds, next to each other; one decoding serves them all.

    Raises:
        ValueError: The index cannot fill a batch of a kind that is to be used.
    """

    def __init__(
        self,
        index: Index,
        global_batch: int,
        seed: int,
        use: str = "both",
        modalities: Sequence[str] = MODALITY_NAMES,
        repeats: int = 1,
    ) -> None:
        if use not in _USES:
            raise ValueError(f"use is one of {', '.join(_USES)}, got {use!r}")
        if global_batch < 1 or repeats < 1 or global_batch % repeats:
            raise ValueError(f"a global batch of {global_batch} does not hold {repeats} crops of each sample")
        self.index = index
        self.global_batch = global_batch
        self.seed = seed
        self.repeats = repeats
        self.modalities = tuple(get_modality(name).name for name in modalities)
        self._paired = np.empty(0, dtype=np.int32)
        self._pools: dict[str, np.ndarray] = {}
        self._collect(use)
        distinct = global_batch // repeats
        self.paired_samples = len(self._paired)
        self.unpaired_samples = max((len(pool) for pool in self._pools.values()), default=0)
        self.paired_steps = self.paired_samples // distinct
        self.unpaired_steps = self.unpaired_samples // distinct
        self._require_steps(distinct)
        self._epoch: int | None = None
        self._order: dict[str, np.ndarray] = {}
        self._step_kinds = np.empty(0, dtype=bool)
        self._step_places: np.ndarray = np.empty(0, dtype=np.int32)

    def _collect(self, use: str) -> None:
        if len(self.modalities) == 1:
            only = self.modalities[0]
            self._pools = {only: self.index.rows_with(only)}
            return
        if use in ("both", "paired"):
            self._paired = self.index.paired_rows
        if use in ("both", "unpaired"):
            pools = {"optical": self.index.optical_only_rows, "sar": self.index.sar_only_rows}
            if any(len(pool) for pool in pools.values()):
                for modality, pool in pools.items():
                    pools[modality] = pool if len(pool) else self.index.paired_rows
                    if not len(pools[modality]):
                        raise ValueError(
                            f"the views want optical and SAR images but there is no {modality} image in "
                            f"{', '.join(self.index.folders)}; add an index that has some"
                        )
                self._pools = pools

    def _require_steps(self, distinct: int) -> None:
        where = ", ".join(self.index.folders)
        kinds = (
            ("paired", self.paired_samples, self.paired_steps),
            ("unpaired", self.unpaired_samples, self.unpaired_steps),
        )
        if not any(samples for _, samples, _ in kinds):
            raise ValueError(f"{where}: no sample of the wanted kind among {len(self.index)} rows")
        for kind, samples, steps in kinds:
            if samples and not steps:
                raise ValueError(
                    f"{where}: {samples} {kind} samples do not fill a batch of {distinct}; use a global "
                    f"batch of at most {samples * self.repeats}, or leave the {kind} samples out"
                )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, the same on every process."""
        return self.paired_steps + self.unpaired_steps

    @property
    def samples_per_epoch(self) -> int:
        """Samples that an epoch's steps hold."""
        return self.steps_per_epoch * self.global_batch

    def _prepare(self, epoch: int) -> None:
        """Draws an epoch's order; the last one drawn is kept."""
        if self._epoch == epoch:
            return
        self._order = {}
        if len(self._paired):
            self._order["paired"] = self._shuffled(self._paired, epoch, 0, "paired")
        for modality, pool in self._pools.items():
            cycles = -(-self.unpaired_samples // len(pool))
            shuffles = [self._shuffled(pool, epoch, cycle, modality) for cycle in range(cycles)]
            self._order[modality] = np.concatenate(shuffles)[: self.unpaired_samples]
        kinds = np.arange(self.steps_per_epoch) < self.paired_steps
        self._step_kinds = self._shuffled(kinds, epoch, 0, "steps")
        before = np.cumsum(self._step_kinds) - self._step_kinds
        self._step_places = np.where(self._step_kinds, before, np.arange(len(kinds)) - before).astype(
            np.int32
        )
        self._epoch = epoch

    def _shuffled(self, values: np.ndarray, epoch: int, cycle: int, stream: str) -> np.ndarray:
        return counter_rng(self.seed, epoch, cycle, -1, f"order:{stream}").permutation(values)

    def is_paired(self, epoch: int, step: int) -> bool:
        """Whether a step of an epoch is a paired one."""
        self._check(step)
        self._prepare(epoch)
        return bool(self._step_kinds[step])

    def _check(self, step: int) -> None:
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} is not among the {self.steps_per_epoch} steps of an epoch")

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """The global batch of one step, in global order.

        Args:
            epoch: The epoch, from 0.
            step: The step within it, from 0 to ``steps_per_epoch - 1``.
        """
        paired = self.is_paired(epoch, step)
        distinct = self.global_batch // self.repeats
        start = int(self._step_places[step]) * distinct
        stop = start + distinct
        draws = []
        if paired:
            for row in self._order["paired"][start:stop].tolist():
                draws += [Draw(epoch, repeat, row, row, True) for repeat in range(self.repeats)]
            return draws
        sides = [
            self._order[modality][start:stop].tolist() if modality in self._pools else [-1] * distinct
            for modality in MODALITY_NAMES
        ]
        shortest = min(len(pool) for pool in self._pools.values())
        for place, (optical, sar) in enumerate(zip(*sides, strict=True), start=start):
            first = place // shortest * self.repeats
            draws += [Draw(epoch, first + repeat, optical, sar, False) for repeat in range(self.repeats)]
        return draws

    def rank_slice(
        self, epoch: int, step: int, rank: int, world_size: int, grad_accum_steps: int = 1
    ) -> list[list[Draw]]:
        """One process's part of a global batch, as its micro-batches in order.

        Raises:
            ValueError: The global batch cannot be dealt evenly.
        """
        parts = world_size * grad_accum_steps
        if self.global_batch % parts:
            raise ValueError(
                f"a global batch of {self.global_batch} cannot be dealt to {world_size} processes x "
                f"{grad_accum_steps} accumulation steps"
            )
        size = self.global_batch // parts
        whole = self.batch(epoch, step)
        first = rank * grad_accum_steps
        return [whole[part * size : (part + 1) * size] for part in range(first, first + grad_accum_steps)]
