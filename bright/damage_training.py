"""Fine-tuning an encoder and a damage head on pairs of two dates."""

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from damage_config import BrightConfig, DamageError
from damage_evaluation import evaluate_tiles, figure_of, removed_words, tiles_of, write_results
from damage_file import Description, save_model
from damage_splits import Splits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from codemae.checkpoint import has_run_state
from codemae.data.augmentation import ShuffledBatches
from codemae.data.bitemporal import BitemporalTiles, training_statistics
from codemae.distributed import barrier, is_main, rank, world_size
from codemae.engine.best_step import BestStep, share_buffers, write_lines
from codemae.engine.supervised import Checkpoints, SupervisedStep, train_supervised
from codemae.evaluation.card import CARD_NAME, Card
from codemae.evaluation.features import encoder_hash, rows_hash
from codemae.losses.segmentation import damage_losses
from codemae.models.damage import DamageModel
from codemae.models.factory import load_encoder
from codemae.models.layer_decay import parameter_groups

Batch = tuple[Tensor, Tensor, Tensor]


def train(config: BrightConfig, device: torch.device) -> list[Card]:
    """Trains a model, saves the chosen step and writes a card for every reported split."""
    splits = Splits(config.data, config.seed)
    rows = splits.train
    folder = Path(config.output_dir)
    if config.resume == "never" and has_run_state(folder):
        raise DamageError(f"{folder} holds a run already; choose another --output_dir, or --resume auto")
    encoder = _encoder(config, splits)
    description = _describe(config, splits, encoder)
    model = description.build(encoder).to(device)
    if world_size() > 1 and config.sync_batch_norm and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    print_main(f"{len(rows)} training tiles, {splits.rule()}; {removed_words(description.removed)}")

    chosen = BestStep()
    _fit(config, splits, model, chosen, device)
    description.step = chosen.step
    if is_main():
        save_model(folder, chosen.state, description)
    model.load_state_dict(chosen.state)
    return report(config, description, model, splits, device)


def report(
    config: BrightConfig, description: Description, model: DamageModel, splits: Splits, device: torch.device
) -> list[Card]:
    """Evaluates every reported split; cards in ``<split>/`` and the first one's also in the run folder."""
    folder = Path(config.output_dir)
    names = [config.split] if config.split else splits.report_names()
    cards = []
    for place, name in enumerate(names):
        rows = splits.report(name)
        score = evaluate_tiles(
            model, tiles_of(config, splits, rows), splits.events, config, device, dates=config.dates
        )
        where = folder / (name if config.dates == "both" else f"{name}_{config.dates}")
        card = write_results(where, config, description, splits, name, rows, score, config.dates)
        cards.append(card)
        if is_main() and place == 0 and config.dates == "both":
            card.save(folder / CARD_NAME)
        print_main(f"{name}: {where / 'events.md'}")
    barrier()
    return cards


def _fit(
    config: BrightConfig, splits: Splits, model: DamageModel, chosen: BestStep, device: torch.device
) -> None:
    optim, folder = config.optim, Path(config.output_dir)
    tiles = BitemporalTiles(
        splits.index,
        splits.train,
        post_modality=config.data.post_modality,
        mask_values=config.data.mask_values,
        ignore_values=config.data.ignore_values,
        augmentation=config.augmentation,
        seed=config.seed,
    )
    batch_size = min(optim.batch_size, len(tiles))
    per_epoch = max(1, len(tiles) // batch_size // optim.grad_accum_steps)
    total = optim.total_steps(per_epoch)
    judge = config.judge_split
    judged = None
    if judge is not None:
        judge_rows = splits.select if config.protocol == "clean" else splits.report(splits.report_names()[0])
        judged = tiles_of(config, splits, judge_rows)

    def batches(steps: int) -> Iterable[Batch]:
        done = steps * optim.grad_accum_steps
        epochs = -(-total * optim.grad_accum_steps // max(1, len(tiles) // batch_size))
        try:
            sampler = ShuffledBatches(
                len(tiles), batch_size, epochs, config.seed, rank=rank(), world_size=world_size(), start=done
            )
        except ValueError as error:
            raise DamageError(str(error)) from None
        pinned = device.type == "cuda"
        return DataLoader(
            tiles, batch_sampler=sampler, num_workers=config.data.num_workers, pin_memory=pinned
        )

    seen: list[dict[str, Tensor]] = []

    def loss_of(module: nn.Module, batch: Batch) -> Tensor:
        pre, post, mask = (part.to(device, non_blocking=True) for part in batch)
        output = module(pre, post)
        terms = damage_losses(output.localisation, output.damage, mask, config.loss, output.post_localisation)
        seen.append({name: value.detach() for name, value in terms.items()})
        return torch.stack(list(terms.values())).sum()

    since = time.perf_counter()

    def after_step(report_: SupervisedStep) -> None:
        nonlocal since
        step = report_.step
        last = step == total
        if not last and step % config.evaluate_every and step % max(1, total // 100):
            return
        line: dict[str, Any] = {"step": step, "loss": report_.loss, "lr": report_.lr}
        line |= {"grad_norm": report_.grad_norm, "finite": report_.finite}
        share_buffers(model)
        line |= {name: float(torch.stack([terms[name] for terms in seen]).mean()) for name in seen[0]}
        seen.clear()
        if judged is not None and (last or step % config.evaluate_every == 0):
            score = evaluate_tiles(model, judged, splits.events, config, device)
            figure = figure_of(score, config.metric)
            line |= {"split": judge, config.metric: figure}
            chosen.offer(model, step, figure)
        elif judged is None and last:
            chosen.offer(model, step)
        line["seconds"] = round(time.perf_counter() - since, 2)
        since = time.perf_counter()
        chosen.lines.append(line)
        write_lines(folder / "metrics.jsonl", chosen.lines)
        shown = [f"{key} {value:.4g}" for key, value in line.items() if isinstance(value, float)]
        print_main(f"step {step}/{total}  " + "  ".join(shown))

    train_supervised(
        model,
        parameter_groups(
            model, "encoder", config.model.variant, config.model.layer_decay, optim.weight_decay
        ),
        batches,
        loss_of,
        optim,
        total_steps=total,
        warmup_steps=optim.warmup(per_epoch),
        peak=optim.peak(batch_size * optim.grad_accum_steps),
        device=device,
        seed=config.seed,
        after_step=after_step,
        checkpoints=Checkpoints(
            folder=folder, every=optim.save_every, identity=_identity(config, splits), notes=chosen
        ),
    )
    if not chosen.state:
        raise DamageError(f"{folder} was trained to the end without a chosen step; delete it and train again")


def _identity(config: BrightConfig, splits: Splits) -> dict[str, Any]:
    """What must be the same for a resume."""
    settings = _training_settings(config)
    settings["optim"] = {key: value for key, value in settings["optim"].items() if key != "save_every"}
    return settings | {
        "encoder": config.encoder,
        "seed": config.seed,
        "train_rows": rows_hash(splits.index, splits.train),
        "statistics": splits.index.statistics_hash(),
    }


def _training_settings(config: BrightConfig) -> dict[str, Any]:
    return {
        "model": asdict(config.model),
        "loss": asdict(config.loss),
        "augmentation": asdict(config.augmentation),
        "optim": asdict(config.optim),
        "evaluate_every": config.evaluate_every,
        "select_split": config.judge_split,
        "classes": config.data.classes,
    }


def _encoder(config: BrightConfig, splits: Splits) -> Any:
    """The encoder, its patch embeddings adapted to the images' channels.

    Raises:
        DamageError: There is none of that name, or it has no pyramid or not the modalities.
    """
    if not config.encoder:
        raise DamageError("--encoder names no encoder: FILE, released NAME, random:ARCH or random:FILE")
    wanted = dict.fromkeys(("optical", config.data.post_modality))
    channels = {name: training_statistics(splits.index, splits.train, name).channels for name in wanted}
    try:
        encoder: Any = _load(config, None)
        missing = [name for name in wanted if name not in encoder.modalities]
        if missing:
            raise DamageError(f"{config.encoder} takes no {' and no '.join(missing)} images")
        if not hasattr(encoder, "pyramid") or not tuple(encoder.pyramid_dims):
            raise DamageError(f"{config.encoder} has no feature maps at strides 4, 8, 16 and 32")
        own = encoder.channels
        differing = {name: count for name, count in channels.items() if count not in (1, own[name])}
        return _load(config, dict(own) | differing) if differing else encoder
    except DamageError:
        raise
    except (KeyError, FileNotFoundError, ImportError, ValueError, TypeError, AttributeError) as error:
        raise DamageError(f"--encoder {config.encoder}: {error.args[0] if error.args else error}") from error


def _load(config: BrightConfig, channels: dict[str, int] | None) -> Any:
    return load_encoder(
        config.encoder,
        img_size=config.augmentation.crop,
        channels=channels,
        center=config.model.center,
        seed=config.init_seed,
        drop_path=config.model.drop_path,
        checkpoint_activations=config.model.checkpoint_activations,
    )


def _describe(config: BrightConfig, splits: Splits, encoder: Any) -> Description:
    train_rows = splits.train
    statistics = [
        training_statistics(splits.index, train_rows, name).to_dict()
        for name in ("optical", config.data.post_modality)
    ]
    return Description(
        arch=encoder.arch,
        arch_kwargs=encoder.arch_kwargs,
        classes=list(config.data.classes),
        pre_modality="optical",
        post_modality=config.data.post_modality,
        head=config.model.head,
        width=config.model.width,
        post_localisation=config.loss.post_localisation > 0,
        pre=statistics[0],
        post=statistics[1],
        encoder=config.encoder,
        checkpoint_hash=encoder_hash(config.encoder, encoder),
        protocol=config.protocol,
        selected_by=config.selected_by,
        step=0,
        seed=config.seed,
        norm_levels=config.model.norm_levels,
        training=_training_settings(config),
        train_hash=rows_hash(splits.index, train_rows),
        split_rule=splits.rule(),
        removed=splits.repeated(),
    )


def print_main(text: str) -> None:
    """Prints on the main process."""
    if is_main():
        print(text, flush=True)
