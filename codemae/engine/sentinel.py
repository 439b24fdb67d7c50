"""The collapse sentinel: are the features still spread out, and do the losses still pull together?"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemae.data.batch import Batch
from codemae.data.dataset import Draw, PairDataset
from codemae.data.sampler import PretrainSampler
from codemae.distributed import all_gather, all_reduce_mean, rank, world_size
from codemae.engine.randomness import undisturbed_generators
from codemae.engine.step import Learner
from codemae.methods.base import Method, Progress

COLLAPSED_BELOW = 2.0
_GRADIENT_SAMPLES = 8


class Sentinel:
    """Measures a method on a frozen probe batch without leaving a trace in the run.

    Args:
        dataset: Of the run.
        sampler: Of the run; the probe is the first paired samples of its first epoch, or unpaired ones if
            there are no others.
        samples: How many, over all processes.
    """

    def __init__(self, dataset: PairDataset, sampler: PretrainSampler, samples: int) -> None:
        draws = _probe_draws(sampler, samples)
        share = len(draws) // world_size()
        mine = [dataset[draw] for draw in draws[rank() * share : (rank() + 1) * share]]
        self._batch: Batch | None = dataset.collate(mine) if share else None
        self._few: Batch | None = dataset.collate(mine[:_GRADIENT_SAMPLES]) if share else None

    def measure(self, learner: Learner, progress: Progress) -> dict[str, float]:
        """``effective_rank_*``, ``modality_gap`` and ``gradient_cosine_*_*``; empty without a probe."""
        if self._batch is None or self._few is None:
            return {}
        values = {}
        with undisturbed(learner.method), learner.autocast():
            with torch.no_grad():
                features = learner.method.probe_features(self._batch.to(learner.device))
            features = {name: all_gather(tensor.float(), False).cpu() for name, tensor in features.items()}
            values.update({f"effective_rank_{name}": effective_rank(x) for name, x in features.items()})
            if len(features) == 2:
                values["modality_gap"] = modality_gap(*features.values())
            terms = learner.method.training_losses(self._few.to(learner.device), progress)
            cosines = gradient_cosines(terms, encoder_parameters(learner.method))
            values.update({f"gradient_cosine_{name}": cosine for name, cosine in cosines.items()})
        return values

    def pictures(self, learner: Learner) -> dict[str, Tensor]:
        """The method's pictures of the first probe samples."""
        if self._few is None:
            return {}
        with undisturbed(learner.method), learner.autocast(), torch.no_grad():
            return learner.method.pictures(self._few.to(learner.device))


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of the centred features.

    1 where all features lie on a line, at most min(B - 1, D).

    Reference: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Args:
        features: (B, D).
    """
    singular = torch.linalg.svdvals((features - features.mean(0)).double())
    if singular.sum() <= 1e-12 * max(1.0, float(features.abs().max())):
        return 1.0
    shares = singular / singular.sum()
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def modality_gap(optical: Tensor, sar: Tensor) -> float:
    """Distance between the centroids of the L2-normalised features (B, D) of two modalities; 0 to 2.

    Reference: Liang et al., "Mind the Gap", NeurIPS 2022, arXiv:2203.02053.
    """
    centroids = [F.normalize(features.double(), dim=-1).mean(0) for features in (optical, sar)]
    return float((centroids[0] - centroids[1]).norm())


def gradient_cosines(terms: Mapping[str, Tensor], parameters: list[nn.Parameter]) -> dict[str, float]:
    """Cosine between the gradients of each pair of terms, averaged over ranks; terms without are left out.

    Neither ``.grad`` nor the hooks of DDP are touched.
    """
    vectors = {}
    for name, term in terms.items():
        if not term.requires_grad:
            continue
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
        vector = all_reduce_mean(torch.cat([gradient.float().flatten() for gradient in gradients]), False)
        if torch.isfinite(vector).all() and vector.any():
            vectors[name] = F.normalize(vector, dim=0)
    pairs = itertools.combinations(vectors, 2)
    return {f"{first}_{second}": float(vectors[first] @ vectors[second]) for first, second in pairs}


def encoder_parameters(method: Method) -> list[nn.Parameter]:
    """The trainable parameters of what a method exports."""
    modules = method.encoders().values()
    return [p for module in modules for p in module.parameters() if p.requires_grad]


@contextmanager
def undisturbed(method: Method) -> Iterator[None]:
    """Inside, the method is in eval mode and not compiled; modes, buffers and generators are put back."""
    modes = {module: module.training for module in method.modules()}
    buffers = {name: buffer.clone() for name, buffer in method.named_buffers()}
    with undisturbed_generators(), torch.compiler.set_stance("force_eager"):
        torch.manual_seed(0)
        method.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for name, buffer in method.named_buffers():
                    buffer.copy_(buffers[name])


def _probe_draws(sampler: PretrainSampler, samples: int) -> list[Draw]:
    wants_paired = sampler.paired_steps > 0
    draws: list[Draw] = []
    for step in range(sampler.steps_per_epoch):
        if len(draws) >= samples:
            break
        if sampler.is_paired(0, step) == wants_paired:
            draws += sampler.batch(0, step)
    return draws[:samples]
