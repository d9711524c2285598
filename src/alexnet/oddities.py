"""Pictures of ILSVRC-2012 that are known to be odd, by their names.

Lists that have gone from one ImageNet script to the next since 2012. `known` recognises a picture
only when it also shows the oddity: in cleaned copies of the data set, nothing is said.

Not here: finding what nobody has listed yet (audit.py).
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Oddity:
    """`kinds`: as `alexnet check` names them; one of them must be there to recognise it."""

    kinds: frozenset[str]
    what: str
    source: str


_PNG = Oddity(
    frozenset({"wrong-name"}),
    "the one PNG among the training pictures of ILSVRC-2012",
    "github.com/cytsai/ilsvrc-cmyk-image-list",
)
_INKS = Oddity(
    frozenset({"cmyk", "ycck"}),
    "one of the 22 CMYK pictures in the training set of ILSVRC-2012",
    "github.com/cytsai/ilsvrc-cmyk-image-list",
)
_EXIF = Oddity(
    frozenset({"warning"}),
    "its EXIF block makes Pillow warn of damage; its pixels are whole",
    "github.com/horovod/horovod/issues/333",
)

_INKS_NAMES = """
n01739381_1309 n02077923_14822 n02447366_23489 n02492035_15739 n02747177_10752 n03018349_4028
n03062245_4620 n03347037_9675 n03467068_12171 n03529860_11437 n03544143_17228 n03633091_5218
n03710637_5125 n03961711_5286 n04033995_2932 n04258138_17003 n04264628_27969 n04336792_7448
n04371774_5854 n04596742_4225 n07583066_647 n13037406_4650
"""

ODDITIES: dict[str, Oddity] = {
    "n02105855_2933.JPEG": _PNG,
    "n04152593_17460.JPEG": _EXIF,
    **{f"{name}.JPEG": _INKS for name in _INKS_NAMES.split()},
}


def known(name: str, kinds: Collection[str]) -> Oddity | None:
    """The listed oddity of the picture of this name, if it shows one of its `kinds`."""
    oddity = ODDITIES.get(name.rpartition("/")[2])
    return oddity if oddity is not None and oddity.kinds.intersection(kinds) else None
