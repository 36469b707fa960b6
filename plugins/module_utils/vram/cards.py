# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cards by name, for plans without hardware. (pure)"""

from __future__ import annotations

from ..gpu_model import CUDA_TOTAL_MIB
from ..gpu_selection import VARIANTS
from .request import Card, PlanError

CAPABILITY = {
    "GTX 1080": (6, 1), "T4": (7, 5), "A100": (8, 0), "RTX 3090": (8, 6), "A10": (8, 6), "A40": (8, 6), "L4": (8, 9),
    "RTX 40": (8, 9), "H100": (9, 0), "H200": (9, 0), "RTX 50": (12, 0),
}  # fmt: skip
"""Compute capability by the beginning of a product's short name: developer.nvidia.com/cuda-gpus."""
PUBLISHED = {
    "Tesla P40": (24, (6, 1)), "GeForce GTX 1080 Ti": (11, (6, 1)), "GeForce RTX 2080 Ti": (11, (7, 5)),
    "TITAN RTX": (24, (7, 5)), "A30": (24, (8, 0)), "GeForce RTX 3060": (12, (8, 6)), "GeForce RTX 3070": (8, (8, 6)),
    "GeForce RTX 3080 Ti": (12, (8, 6)), "RTX A4000": (16, (8, 6)), "RTX A5000": (24, (8, 6)),
    "RTX A6000": (48, (8, 6)), "L40": (48, (8, 9)), "RTX 6000 Ada": (48, (8, 9)), "GeForce RTX 4060": (8, (8, 9)),
    "GeForce RTX 4070": (12, (8, 9)), "GeForce RTX 4070 Ti": (12, (8, 9)), "GeForce RTX 4080": (16, (8, 9)),
    "H20": (96, (9, 0)), "B200": (180, (10, 0)), "GeForce RTX 5070": (12, (12, 0)),
    "GeForce RTX 5070 Ti": (16, (12, 0)), "RTX PRO 6000": (96, (12, 0)),
}  # fmt: skip
"""GB on the box and compute capability of further cards that are sold in one size: the maker's product pages."""
LEAST_SHARE = 0.91
"""What CUDA sees of the GB on the box (taken as GiB) at least: with ECC 14.56 of 16, 44.31 of 48; without it 0.98."""
LOGGED_GIB = {"NVIDIA A100-SXM4-80GB": 79.15, "NVIDIA A100 80GB PCIe": 79.15}
"""Least total that engines' start-up logs print for cards of this size (79.15 to 79.33)."""
_MAKERS_WORDS = ("NVIDIA ", "GeForce ", "Tesla ")


def _short(name: str) -> str:
    for word in _MAKERS_WORDS:
        name = name.removeprefix(word)
    return name


def _is_form_of(name: str, wanted: str) -> bool:
    """Whether `name` is `wanted` in one of the forms that it is sold in (SXM, PCIe), and no other product (Ti, Ada)."""
    more = name.removeprefix(wanted)
    if not name.startswith(wanted) or more[:1] not in {" ", "-"}:
        return False
    return not more[1:].startswith((*VARIANTS, "ada"))


def card_named(name: str, number: int = 0) -> Card:
    """A card of the catalogue by its product name, with or without the maker's words: 'RTX 4090', 'NVIDIA L4'.

    Its total is what CUDA reports where a log says it, else the least that the published size can mean. `number` tells
    equal cards apart. Raises PlanError for a name that is unknown or stands for several cards.
    """
    totals = {product: mib << 20 for product, mib in CUDA_TOTAL_MIB.items()}
    totals |= {f"NVIDIA {product}": int(size * LEAST_SHARE * (1 << 30)) for product, (size, _cc) in PUBLISHED.items()}
    totals |= {product: int(size * (1 << 30)) for product, size in LOGGED_GIB.items()}
    wanted = _short(name.strip()).lower()
    exact = [product for product in totals if _short(product).lower() == wanted]
    found = exact or [product for product in totals if wanted and _is_form_of(_short(product).lower(), wanted)]
    if len(found) != 1:
        known = ", ".join(_short(product) for product in found or totals)
        what = "stands for several" if found else "is not in the catalogue"
        raise PlanError(f"card {name!r} {what}; known are {known}, or name a near one of the same memory")
    return Card(found[0], totals[found[0]], capability=_capability(found[0]), uuid=f"{found[0]}#{number}")


def _capability(product: str) -> tuple[int, int] | None:
    published = PUBLISHED.get(product.removeprefix("NVIDIA "))
    if published:
        return published[1]
    short = _short(product)
    matches = [key for key in CAPABILITY if short.startswith(key)]
    return CAPABILITY[max(matches, key=len)] if matches else None
