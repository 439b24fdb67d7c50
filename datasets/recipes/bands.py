"""Which of the stored channels are read: what a card says, or ``--bands``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codemae.data.measuring import Survey
from codemae.modality import MODALITY_NAMES
from recipes.plan import Plan, PrepareError

HELP = "channels to read: optical=B4,B3,B2, sar=VV, or optical=all; only for data whose bands have names"


@dataclass(frozen=True, slots=True)
class Selection:
    """Channels of one modality.

    Attributes:
        numbers: Stored channel numbers, in the order they are read; empty reads all.
        names: Names of what is read; empty where unknown.
    """

    numbers: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def survey(self, modality: str) -> Survey:
        """An empty survey that reads these channels."""
        return Survey(modality, select=self.numbers, bands=self.names)


def selections(plan: Plan, words: Sequence[str]) -> dict[str, Selection]:
    """Modality to the channels to read.

    Args:
        plan: Names of the stored bands, and the bands to read unless the command line says otherwise.
        words: ``MODALITY=NAME,NAME`` or ``MODALITY=all``, as ``--bands`` takes them.

    Raises:
        PrepareError: A word is no such thing, or names a band that is not stored.
    """
    wanted = dict(plan.select)
    for word in words:
        modality, _, names = word.partition("=")
        if modality not in MODALITY_NAMES or not names:
            raise PrepareError(f"--bands {word}: write {' or '.join(MODALITY_NAMES)}=NAME,NAME or =all")
        if modality not in plan.bands:
            raise PrepareError(f"--bands {word}: the {modality} bands of this data have no names")
        wanted[modality] = plan.bands[modality] if names == "all" else tuple(names.split(","))
    return {name: _selection(name, plan.bands.get(name, ()), wanted) for name in MODALITY_NAMES}


def _selection(modality: str, stored: tuple[str, ...], wanted: Mapping[str, tuple[str, ...]]) -> Selection:
    names = wanted.get(modality, ())
    if missing := [name for name in names if name not in stored]:
        known = ", ".join(stored) or "bands without names"
        raise PrepareError(f"no {modality} band {', '.join(missing)}; stored: {known}")
    if not names or names == stored:
        return Selection((), stored)
    return Selection(tuple(stored.index(name) for name in names), tuple(names))
