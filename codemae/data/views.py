"""What crops of which modality a method wants to see."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from codemae.modality import get_modality


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One crop of one modality.

    Attributes:
        modality: ``optical`` or ``sar``.
        size: Side of the crop after resizing, in pixels.
        scale: Smallest and largest share of the image's area that a crop covers.
        ratio: Smallest and largest width / height of a crop.
        horizontal_flip: Probability of mirroring left and right.
        vertical_flip: Probability of mirroring top and bottom.
        crop_group: Views of one *paired* sample that name the same group share crop and flip. Views of an
            unpaired sample never share them across modalities.
    """

    modality: str
    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    crop_group: str = "pair"

    def __post_init__(self) -> None:
        get_modality(self.modality)
        if self.size < 1:
            raise ValueError(f"a view needs a size of at least 1 pixel, got {self.size}")
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"a view's {name} is (low, high) with 0 < low <= high, got {(low, high)}")
        if self.scale[1] > 1:
            raise ValueError(f"a crop cannot cover more than the image: scale {self.scale}")
        for name, chance in (
            ("horizontal_flip", self.horizontal_flip),
            ("vertical_flip", self.vertical_flip),
        ):
            if not 0 <= chance <= 1:
                raise ValueError(f"{name} is a probability, got {chance}")

    @property
    def crop_rule(self) -> tuple[object, ...]:
        """All that decides where the crop lies; equal within a crop group."""
        return self.scale, self.ratio, self.horizontal_flip, self.vertical_flip


class Views(Mapping[str, View]):
    """The views of a method by name, and the length of the mask noise it draws from.

    Args:
        views: View name to view.
        num_patches: Length N of a sample's mask noise; 0 where the method masks nothing.

    Raises:
        ValueError: Two views of one crop group crop by different rules.
    """

    def __init__(self, views: Mapping[str, View], num_patches: int = 0) -> None:
        if not views:
            raise ValueError("a method needs at least one view")
        if num_patches < 0:
            raise ValueError(f"num_patches counts patches, got {num_patches}")
        rules: dict[str, tuple[object, ...]] = {}
        for name, view in views.items():
            if rules.setdefault(view.crop_group, view.crop_rule) != view.crop_rule:
                raise ValueError(
                    f"view {name!r} shares crop group {view.crop_group!r} but crops by another rule; "
                    "give it a crop_group of its own"
                )
        self._views = dict(views)
        self.num_patches = num_patches

    def __getitem__(self, name: str) -> View:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Views({self._views!r}, num_patches={self.num_patches})"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities some view wants, in order of first mention."""
        return tuple(dict.fromkeys(view.modality for view in self._views.values()))
