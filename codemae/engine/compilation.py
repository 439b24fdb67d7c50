"""torch.compile where it pays and cannot go wrong."""

from torch import nn


def compile_blocks(module: nn.Module) -> None:
    """Compiles the innermost members of all ``ModuleList``s in place: the repeated, costly blocks.

    Blocks of one class and size share one compiled graph, so this takes seconds and not minutes, and nothing
    with a varying shape or a Python branch, such as masking, is traced. Parameter names stay as they are.
    """
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                if not any(isinstance(inner, nn.ModuleList) for inner in block.modules()):
                    block.compile()
