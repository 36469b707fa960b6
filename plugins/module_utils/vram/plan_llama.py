# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for llama.cpp and Ollama: one model, one card, as many layers on it as fit. (pure)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .architecture import Architecture, read_config
from .engine_llama import LlamaShape, sum_on_card
from .engine_vllm import GIB, Range, exactly
from .headers import Tensor
from .request import FAILS, FITS, UNKNOWN, CardPlan, Plan, Request, span
from .tensors import derive, quantization_named


def plan_llama(request: Request) -> Plan:
    """One model on the card with most room: all layers, or as many as fit. Raises ConfigError and KvError."""
    model, wishes = request.model, request.wishes
    arch = read_config(model.config, model.vision_parameters)
    tensors = model.tensors
    if tensors is None:
        tensors = tuple(derive(arch, quantization_named(model.quantization or "gguf_q4_k_m")))
    card = max(request.cards, key=lambda card: card.total_bytes - card.others_bytes)
    kinds = {"auto": "f16", "fp8": "q8_0"}
    kind = kinds.get(wishes.kv_dtype, wishes.kv_dtype)
    context = wishes.context or min(arch.max_position or 8192, 8192)
    shape = LlamaShape(
        context * wishes.slots, wishes.slots, wishes.max_num_batched_tokens or 512, kind, kind,
        gpu_layers=wishes.gpu_layers,
    )  # fmt: skip
    room = card.total_bytes - card.others_bytes - wishes.headroom_bytes
    if card.free_bytes is not None:
        room = min(room, card.free_bytes - wishes.headroom_bytes)
    total = sum_on_card(arch, tensors, shape).total
    layers = len(arch.layers) + 1 if shape.gpu_layers is None else shape.gpu_layers
    if card.unified:
        verdict, reason = UNKNOWN, "unified memory: what the system holds is not known"
    elif total.high <= room:
        verdict, reason = FITS, f"at most {total.high / GIB:.2f} of {room / GIB:.2f} GiB"
    elif total.low > room:
        verdict, reason = FAILS, f"at least {total.low / GIB:.2f} of {room / GIB:.2f} GiB"
    else:
        verdict, reason = UNKNOWN, f"{span(total)} GiB (low/likely/high) of {room / GIB:.2f}"
    reasons = ["flash attention on: without it the scores of every batch are stored"]
    if verdict != FITS and wishes.gpu_layers is None and not wishes.explicit and not card.unified:
        layers = _most_layers(arch, tensors, shape, room)
        if layers:
            shape = replace(shape, gpu_layers=layers)
            verdict, reason = FITS, f"{layers} of {len(arch.layers)} layers on the card, the others on the processor"
            reasons.append("as many layers as fit at the high end; every layer on the processor slows the answer")
    part = sum_on_card(arch, tensors, shape)
    parts = {
        "weights": exactly(part.weights_bytes),
        "kv": exactly(part.kv_bytes),
        "states": exactly(part.state_bytes),
        "compute": part.compute,
        "context": part.cuda,
    }
    left = Range(room - part.total.high, room - part.total.likely, room - part.total.low)
    flags = {
        "ctx-size": context * wishes.slots,
        "parallel": wishes.slots,
        "n-gpu-layers": layers,
        "cache-type-k": kind,
        "cache-type-v": kind,
        "flash-attn": "on",
    }
    largest = _largest_llama_context(arch, tensors, shape, room, wishes.slots)
    card_plan = CardPlan(card.name, card.uuid, card.total_bytes, room, parts, left, {}, {}, (0, len(arch.layers)), 0)
    return Plan(
        verdict, reason, model.name, request.engine, request.version or "", "llama.cpp", flags, (card_plan,), context,
        largest, float(wishes.slots), part.kv_bytes, part.kv_bytes / max(context * wishes.slots, 1), tuple(reasons), (),
        arch.incomplete,
    )  # fmt: skip


def _most_layers(arch: Architecture, tensors: Sequence[Tensor], shape: LlamaShape, room: float) -> int:
    low, high = 0, len(arch.layers)
    while low < high:
        middle = (low + high + 1) // 2
        if sum_on_card(arch, tensors, replace(shape, gpu_layers=middle)).total.high <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _largest_llama_context(
    arch: Architecture, tensors: Sequence[Tensor], shape: LlamaShape, room: float, slots: int
) -> int:
    low, high = 0, (arch.max_position or 131072) // 256
    while low < high:
        middle = (low + high + 1) // 2
        if sum_on_card(arch, tensors, replace(shape, context=middle * 256 * slots)).total.high <= room:
            low = middle
        else:
            high = middle - 1
    return low * 256
