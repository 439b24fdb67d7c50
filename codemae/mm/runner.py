"""mmengine's Runner with the house's rules for weights: strict, safe to read, and described."""

import copy
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from codemae.checkpoint import load_strictly
from codemae.mm.backbone import find_backbone
from codemae.mm.checkpoints import ENCODER_KEY, SOURCE_KEY, read_mm_checkpoint
from codemae.mm.optimizer_steps import BATCH_KEY, images_a_step


@RUNNERS.register_module()
class StrictRunner(Runner):
    """Loads every key of a checkpoint or none, and writes into each what its encoder is.

    Differs from mmengine's Runner: that one skips keys that are missing, unknown or of another shape, and
    falls back to running what a pickle says.

    Attributes:
        images_a_step: Of the training that the weights come from; None where nothing says.
    """

    images_a_step: int | None = None

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = "cpu",
        strict: bool = True,
        revise_keys: Any = (),
    ) -> dict[str, Any]:
        """Loads the model's weights and returns the whole checkpoint.

        Args:
            filename: Local path.
            map_location: Ignored: weights are read on the CPU and copied to where the model is.
            strict: Ignored: loading is strict.
            revise_keys: Ignored.

        Raises:
            WeightsError: It cannot be read or does not fit; the message lists every key.
        """
        checkpoint = read_mm_checkpoint(filename)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        load_strictly(model, checkpoint["state_dict"])
        self._has_loaded = True
        self.images_a_step = checkpoint["meta"].get(BATCH_KEY)
        self.logger.info(f"Loaded all of {filename}")
        return checkpoint

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Writes a checkpoint whose ``meta`` describes the encoder; the arguments are mmengine's."""
        model = self.model.module if is_model_wrapper(self.model) else self.model
        meta = copy.copy(kwargs.pop("meta", None) or {})
        backbone = find_backbone(model)[1]
        self.images_a_step = images_a_step(self.cfg)
        meta |= {ENCODER_KEY: backbone.description(), SOURCE_KEY: backbone.source}
        meta |= {BATCH_KEY: self.images_a_step}
        super().save_checkpoint(out_dir, filename, *args, meta=meta, **kwargs)
