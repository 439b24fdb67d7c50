"""One continuous stream of batches, from any step to the end of the run."""

import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from codemae.data.dataset import Batch, PairDataset
from codemae.data.draws import Draw
from codemae.data.sampler import PretrainSampler

_GRACE_SECONDS = 30


class _MicroBatches(Sampler[list[Draw]]):
    """The micro-batches of one process, over all steps that are left."""

    def __init__(
        self,
        sampler: PretrainSampler,
        rank: int,
        world_size: int,
        grad_accum_steps: int,
        start: int,
        stop: int,
    ) -> None:
        self._sampler = sampler
        self._place = rank, world_size, grad_accum_steps
        self._start, self._stop = start, stop

    def __len__(self) -> int:
        return (self._stop - self._start) * self._place[2]

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self._start, self._stop):
            epoch, within = divmod(step, self._sampler.steps_per_epoch)
            yield from self._sampler.rank_slice(epoch, within, *self._place)


def _start_worker(worker: int) -> None:
    """One thread a worker; Ctrl-C is left to the process that started it, and SIGTERM gives it time to save.

    A batch system signals every process of a job; a worker that died at once would take the run down before
    its checkpoint is written.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.alarm(_GRACE_SECONDS))


class Loader:
    """Batches of one process, micro-batch by micro-batch; workers live until the stream ends.

    Attributes:
        grad_accum_steps: Micro-batches of one optimizer step.
        bad: Sentences about all samples replaced so far.
        nonfinite: NaN and infinite values seen so far.
        samples: Samples handed out so far.
    """

    def __init__(
        self,
        dataset: PairDataset,
        batches: Sampler[list[Draw]],
        grad_accum_steps: int,
        num_workers: int,
        prefetch: int,
        pin_memory: bool,
    ) -> None:
        self.dataset = dataset
        self.grad_accum_steps = grad_accum_steps
        self.bad: list[str] = []
        self.nonfinite = 0
        self.samples = 0
        self._loader: DataLoader[Batch] = DataLoader(
            dataset,  # type: ignore[arg-type]  # the workers return collated batches
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=dataset.collate,
            worker_init_fn=_start_worker,
            prefetch_factor=prefetch if num_workers else None,
            pin_memory=pin_memory,
        )

    def __len__(self) -> int:
        """Micro-batches from the start of the stream to its end."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            self.bad += batch.bad
            self.nonfinite += batch.nonfinite
            self.samples += len(batch)
            yield batch


def make_loader(
    dataset: PairDataset,
    sampler: PretrainSampler,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_per_rank: int | None = None,
    start_step: int = 0,
    epochs: int = 1,
    total_steps: int | None = None,
    num_workers: int = 0,
    prefetch: int = 4,
    pin_memory: bool = False,
) -> Loader:
    """The stream of one process's micro-batches.

    Args:
        dataset: Turns draws into crops.
        sampler: Says which draws form which step.
        rank: This process.
        world_size: Number of processes.
        batch_per_rank: Samples of one micro-batch; by default the process's whole share of a step.
        start_step: Optimizer steps already done.
        epochs: Epochs of the whole run.
        total_steps: Optimizer steps of the whole run, instead of ``epochs``.
        num_workers: Worker processes; 0 decodes in this one.
        prefetch: Batches each worker prepares ahead.
        pin_memory: Whether to hand out page-locked tensors, for a GPU.

    Raises:
        ValueError: The global batch is not a multiple of ``world_size * batch_per_rank``.
    """
    share = sampler.global_batch // world_size
    micro = share if batch_per_rank is None else batch_per_rank
    if micro < 1 or sampler.global_batch % (world_size * micro):
        raise ValueError(
            f"a global batch of {sampler.global_batch} is not a multiple of {world_size} processes x "
            f"{micro} samples"
        )
    accumulation = sampler.global_batch // (world_size * micro)
    stop = epochs * sampler.steps_per_epoch if total_steps is None else total_steps
    batches = _MicroBatches(sampler, rank, world_size, accumulation, min(start_step, stop), stop)
    return Loader(dataset, batches, accumulation, num_workers, prefetch, pin_memory)
