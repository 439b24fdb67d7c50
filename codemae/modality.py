"""What an optical and a SAR image are to this library."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """One kind of image.

    Attributes:
        name: The one name used in code, configs and files.
        channels: Channels an image of this kind has when nothing else is said.
        value_range: Range of the values after scaling, before standardisation.
        aliases: Other names users type for it.
    """

    name: str
    channels: int
    value_range: tuple[float, float] = (0.0, 1.0)
    aliases: tuple[str, ...] = ()


OPTICAL = Modality(name="optical", channels=3, aliases=("opt", "rgb", "eo"))
SAR = Modality(name="sar", channels=1, aliases=("radar", "s1"))

MODALITIES: dict[str, Modality] = {m.name: m for m in (OPTICAL, SAR)}
MODALITY_NAMES: tuple[str, ...] = tuple(MODALITIES)


def get_modality(name: str) -> Modality:
    """Finds a modality by its name or one of its aliases.

    Raises:
        KeyError: No modality has this name; the message lists those there are.
    """
    wanted = name.lower()
    for modality in MODALITIES.values():
        if wanted == modality.name or wanted in modality.aliases:
            return modality
    known = ", ".join(f"{m.name} ({', '.join(m.aliases)})" for m in MODALITIES.values())
    raise KeyError(f"unknown modality {name!r}; known: {known}")
