"""Pretrains an encoder on an index of optical and SAR images.

torchrun --nproc_per_node=N pretrain/main.py --config YAML --data.index DIR[,DIR...] --output_dir DIR
    [--resume auto|never|FILE] [--device auto|cpu|cuda] [--optim.epochs E]
"""

import os
import sys
import traceback
from collections.abc import Sequence

import torch

from codemae.checkpoint import CheckpointError
from codemae.config import load_config
from codemae.distributed import is_main, process_group, select_device
from codemae.engine.pretraining import Diverged, Interrupted, PretrainConfig, TrainingStopped, pretrain
from codemae.engine.run import Run
from codemae.methods.base import METHODS

WRONG_INPUT = 2
STOPPED = 1
DIVERGED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    0 done; 1 stopped with a checkpoint, or the checkpoint could not be written; 2 wrong config, data or run
    folder, before any work; 3 losses or gradients are no longer finite, saved as before them; 143 and 130
    saved after SIGTERM and Ctrl-C: the same command resumes.
    """
    config = load_config(PretrainConfig, argv, variants={"method": METHODS.config}, description=__doc__ or "")
    try:
        device = select_device(config.device)
    except ValueError as error:
        return _explain(error, WRONG_INPUT)
    with process_group(device):
        return _pretrain(config, device)


def _pretrain(config: PretrainConfig, device: torch.device) -> int:
    try:
        run = Run(config, device)
    except (ValueError, KeyError, OSError, ImportError, CheckpointError) as error:
        return _explain(error, WRONG_INPUT)
    try:
        pretrain(run)
    except Diverged as error:
        return _explain(error, DIVERGED)
    except (TrainingStopped, CheckpointError) as error:
        return _explain(error, STOPPED)
    except Interrupted as stop:
        if is_main():
            print(f"{stop}; saved at step {run.step}. The same command resumes.", file=sys.stderr)
        return stop.exit_code
    return 0


def _explain(error: Exception, code: int) -> int:
    if os.environ.get("CODEMAE_TRACEBACK"):
        traceback.print_exc()
    if is_main():
        sentence = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
