"""How fast a pretraining step runs, and what part of the machine's matrix-multiplication speed it reaches.

    python benchmarks/pretrain_step.py --encoder hivit_base --batch 8 --dtype bfloat16 --objective codemae

A step is forward, backward and optimizer on random images already on the device. Operations are counted by
PyTorch (a multiply-add is two). After each step five large square products of the same type are timed and the
best is taken; step and peak are the medians over the steps, so a machine whose speed drifts slows both alike.
The last line is one JSON object.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from flops import gflop
from torch import Tensor, nn

from codemae.data.batch import Batch
from codemae.engine.allocator import keep_freed_memory
from codemae.engine.compilation import compile_blocks
from codemae.methods.base import Progress
from codemae.methods.codemae import CoDeMAE, CoDeMAEConfig
from codemae.models.factory import EncoderConfig
from codemae.models.layers import Attention
from codemae.models.teacher import TeacherConfig
from codemae.models.vault import DESCRIPTION, SLOTS, TOKENS, VaultDescription

PROGRESS = Progress(step=0, total_steps=1, epoch=0)
RANDOM_TEACHER = TeacherConfig(name="random", features="last")
PEAK_SIDE = {"cpu": 2048, "cuda": 8192}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="hivit_base")
    parser.add_argument("--batch", type=int, default=8, help="images for `mae`, pairs for `codemae`")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--objective", choices=("mae", "codemae"), default="mae")
    parser.add_argument(
        "--teacher",
        default="vault",
        help="of `codemae`: `vault` (cached tokens, 1024 wide), `none`, or a timm name, live, random weights",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compile", action="store_true", help="compile the blocks, as optim.compile does")
    parser.add_argument(
        "--published-form",
        action="store_true",
        help="attention written out with float32 upcasts, as the published code runs it; for comparison only",
    )
    parser.add_argument(
        "--steps", type=int, default=5, help="timed steps, each followed by products; medians count"
    )
    parser.add_argument("--warmup", type=int, default=2)
    return parser.parse_args(argv)


def random_batch(pairs: int, size: int, device: torch.device) -> Batch:
    """Random uint8 pairs with the fields a method reads."""
    channels = {"optical": 3, "sar": 1}
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Tensor:
        return torch.randint(0, 256, (pairs, count, size, size), dtype=torch.uint8, generator=generator)

    whole = torch.tensor([0.0, 0.0, size, size, 0.0]).repeat(pairs, 1)
    return Batch(
        images={name: images(count) for name, count in channels.items()},
        mean={name: torch.full((pairs, count), 0.4) for name, count in channels.items()},
        std={name: torch.full((pairs, count), 0.2) for name, count in channels.items()},
        paired=True,
        rows={name: torch.arange(pairs) for name in channels},
        epoch=0,
        mask_noise=torch.rand(pairs, (size // 16) ** 2, generator=generator),
        crops=dict.fromkeys(channels, whole),
        source_sizes={name: torch.full((pairs, 2), float(size)) for name in channels},
    ).to(device)


def build_method(args: argparse.Namespace, scratch: Path) -> CoDeMAE:
    """The method of the objective; ``mae`` is CoDe-MAE with its other three terms off."""
    config = CoDeMAEConfig(encoder=EncoderConfig(arch=args.encoder, img_size=args.size))
    full = args.objective == "codemae"
    config.okd.enabled = full and args.teacher != "none"
    config.ccl.enabled = config.cdr.enabled = full
    if args.teacher == "vault":
        config.okd.teacher = replace(RANDOM_TEACHER, vault=str(random_vault(scratch, args)))
    else:
        config.okd.teacher = TeacherConfig(name=args.teacher, pretrained=False)
    return CoDeMAE(config)


def random_vault(folder: Path, args: argparse.Namespace) -> Path:
    """A vault of random tokens as wide as a ViT-L's, one image a sample."""
    side, dim = args.size // 16, 1024
    description = VaultDescription(
        key="random",
        teacher=asdict(RANDOM_TEACHER),
        modality="optical",
        size=args.size,
        grid=[side, side],
        splits=[dim],
        total_rows=args.batch,
        index_hash="random",
        licence_notes=[],
    )
    tokens = np.random.default_rng(0).standard_normal((args.batch, side, side, dim), dtype=np.float32)
    (folder / TOKENS).write_bytes(tokens.astype(np.float16).tobytes())
    np.save(folder / SLOTS, np.arange(args.batch))
    (folder / DESCRIPTION).write_text(json.dumps(asdict(description)))
    return folder


class UpcastAttention(nn.Module):
    """Attention with its products written out in float32, whatever autocast says."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = attention.num_heads, attention.qkv, attention.proj

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers as ``Attention``, slower."""
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        with torch.autocast(x.device.type, enabled=False):
            weights = (q.float() * (D // self.num_heads) ** -0.5) @ k.float().transpose(-2, -1)
            x = weights.softmax(dim=-1) @ v.float()
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


def to_published_form(module: nn.Module) -> None:
    """Replaces every self-attention by the upcasting form."""
    for name, child in module.named_children():
        if isinstance(child, Attention):
            setattr(module, name, UpcastAttention(child))
        else:
            to_published_form(child)


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(function: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds


class MatmulPeak:
    """Speed of large square products of one type."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        side = PEAK_SIDE[device.type]
        self.device = device
        self.a, self.b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        self.gflop = 2 * side**3 / 1e9
        self.measure(repeats=3)

    def measure(self, repeats: int = 5) -> float:
        """GFLOP/s of the best of some products."""
        return self.gflop / min(timed(lambda: self.a @ self.b, self.device, repeats))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns what the last line holds."""
    args = parse(argv)
    name = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    device, dtype = torch.device(name), getattr(torch, args.dtype)
    images_per_sample = 1 if args.objective == "mae" else 2
    pairs = args.batch * images_per_sample // 2
    if pairs < 1 or args.batch * images_per_sample % 2:
        raise SystemExit("--objective mae stacks two modalities: give an even --batch")
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        method = build_method(args, Path(scratch)).to(device).train()
        if args.published_form:
            to_published_form(method)
        if args.compile:
            compile_blocks(method)
        batch = random_batch(pairs, args.size, device)
        optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4, fused=True)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = torch.stack(list(method(batch, PROGRESS).values())).sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        cost = counted_eagerly(args, scratch, batch, device) if args.compile else gflop(step) / args.batch
        timed(step, device, args.warmup)
        product = MatmulPeak(dtype, device)
        rounds = [(timed(step, device, 1)[0], product.measure()) for _ in range(args.steps)]
        seconds, peak = (statistics.median(column) for column in zip(*rounds, strict=True))

    if device.type == "cuda":
        memory, label = torch.cuda.max_memory_allocated() / 2**20, torch.cuda.get_device_name()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        label = f"CPU, {torch.get_num_threads()} threads"
    speed = args.batch / seconds
    result = {
        "samples_per_second": round(speed, 3),
        "gflop_per_sample": round(cost, 2),
        "peak_gflops": round(peak, 1),
        "peak_fraction": round(speed * cost / peak, 4),
        "peak_memory_mb": round(memory, 1),
    }
    teacher = f", teacher {args.teacher}" if args.objective == "codemae" else ""
    setting = f"{args.objective} {args.encoder}, batch {args.batch}, {args.dtype}{teacher}"
    print(f"{setting}; {label}; torch {torch.__version__}")
    print(json.dumps(result))
    return result


def counted_eagerly(args: argparse.Namespace, scratch: str, batch: Batch, device: torch.device) -> float:
    """GFLOP a sample of the same step uncompiled: compiled graphs hide their products from the counter."""
    method = build_method(args, Path(scratch)).to(device).train()
    dtype = getattr(torch, args.dtype)

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = torch.stack(list(method(batch, PROGRESS).values())).sum()
        loss.backward()

    return gflop(step) / args.batch


if __name__ == "__main__":
    main()
