# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cards of an inventory by their products, to plan for a machine without looking at it. (pure)"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from .gpu_model import Card as SeenCard
from .gpu_model import Driver, Gpu, GpuReport, Memory, PciAddressError, normalize_pci
from .gpu_selection import parse_gpus, parse_roles, resolve
from .vram.cards import card_named
from .vram.request import Card, PlanError


def roles_by_product(
    gpus: Sequence[Mapping[str, Any]], roles: Mapping[str, Any], products: Sequence[str] = ()
) -> dict[str, list[str]]:
    """{GPU role: [product#number, ...]} of rig_gpus and rig_gpu_roles, or of `products` in place of rig_gpus.

    Empty where neither names a card. Raises PlanError with everything that cannot be told without the machine.
    """
    entries: list[Mapping[str, Any]] = [
        {"name": f"card{number}", "product": name} for number, name in enumerate(products)
    ] or list(gpus)
    if not entries:
        return {}
    declared, problems = parse_gpus(entries if not products else [])
    wanted, more = parse_roles(roles, [card.name for card in declared])
    problems += more
    cards: list[tuple[Card, Gpu]] = []
    for number, entry in enumerate(entries):
        if not entry.get("product"):
            problems.append(
                f"rig_gpus[{number}] ({entry.get('name')}): a plan without the machine needs its product, such as "
                "product: RTX 4090; pci and uuid say nothing of its memory"
            )
            continue
        try:
            card = card_named(str(entry["product"]), number)
            cards.append((card, _seen(card, number, entry)))
        except (PlanError, PciAddressError) as error:
            problems.append(f"rig_gpus[{number}] ({entry.get('name')}): {error}")
    if problems:
        raise PlanError("\n".join(problems))
    report = GpuReport(Driver(True), tuple(gpu for _card, gpu in cards))
    found = resolve(report, declared, wanted)
    if found.problems or found.undecided:
        raise PlanError("\n".join([*found.problems, *found.undecided.values()]))
    by_uuid = {gpu.card.uuid: card.uuid for card, gpu in cards}
    return {role: [by_uuid[gpu.card.uuid] for gpu in chosen] for role, chosen in found.roles.items()}


def _seen(card: Card, number: int, entry: Mapping[str, Any]) -> Gpu:
    """The card as a look at the machine would give it."""
    known = str(entry.get("uuid") or f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, card.uuid)}")
    pci = normalize_pci(str(entry["pci"])) if entry.get("pci") else f"0000:{number + 1:02x}:00.0"
    capability = ".".join(map(str, card.capability)) if card.capability else None
    total = round(card.total_bytes)
    return Gpu(
        SeenCard(number, known, pci, card.name),
        compute_capability=capability,
        memory=Memory(total_bytes=total, cuda_total_bytes=total),
    )
