# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From instances of the inventory to memory plans and back: what is asked, what is added, what is refused. (pure)

The inventory's own options always win; the plan fills in what it leaves open, and judges what it says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .vllm_config import CPU_KV_BYTES, longest_context
from .vllm_flags import ENGINES
from .vram.engine_vllm import GIB
from .vram.plan import check, plan, plan_together
from .vram.plan_cpu import WITHOUT_CACHE, parse_bytes, plan_cpu
from .vram.request import FAILS, FITS, UNKNOWN, Card, Model, Plan, PlanError, Request, Wishes

NOT_PLANNED = "not planned"
"""The fourth verdict of an instance: nothing could be summed, and the engine's own defaults apply."""

SHARED_REQUESTS = (8, 4, 2, 1)
"""Requests of full length that each of several instances on one card gets room for: the first that fits all of them."""
REMEDIES_SHOWN = 3

SHARED_CONTEXTS = (131072, 65536, 32768, 16384, 8192, 4096, 2048, 1024)
"""Contexts that are tried for instances that share a card and leave theirs open, the longest first."""
PLANNER = 1
"""Part of every plan's digest; a higher number makes all plans anew with the next run."""
ENCODER_BYTES = 2 << 30
"""What an encoder takes beside its weights at most: its batch, the CUDA context and libraries."""

UNCOUNTED = (
    *("speculative-config", "enable-lora", "data-parallel-size", "hf-overrides", "num-gpu-blocks-override"),
    *("kv-cache-memory-bytes", "block-size", "kv-offloading-size", "load-format", "enable-prompt-embeds"),
    *("prefill-context-parallel-size", "mamba-ssm-cache-dtype", "mm-encoder-tp-mode", "compilation-config"),
    *("max-cudagraph-capture-size", "cudagraph-capture-sizes", "performance-mode", "enable-expert-parallel"),
    *("disable-hybrid-kv-cache-manager", "enable-chunked-prefill"),
)
"""Options that change what an engine takes on a card in ways that the planner does not know."""
COUNTED_VALUES = {
    "quantization": frozenset({"fp8"}),
    "dtype": frozenset({"auto", "half", "float16", "bfloat16"}),
}
"""Options of which the planner knows these values only."""
SHARES = frozenset({"gpu-memory-utilization", "device-memory-utilization"})
_COUNTED = {
    "gpu-memory-utilization": "utilization",
    "device-memory-utilization": "utilization",
    "max-num-batched-tokens": "max_num_batched_tokens",
    "tensor-parallel-size": "tensor_parallel",
    "pipeline-parallel-size": "pipeline_parallel",
    "decode-context-parallel-size": "context_parallel",
    "kv-cache-dtype": "kv_dtype",
    "enforce-eager": "enforce_eager",
}
"""Options of vLLM -> the wish that they are."""
_BY_KEY = {"max-model-len": "context", "max-num-seqs": "parallel"}
"""Options that the collection writes from a key of the instance."""
_BY_KEYS_OF_LLAMA = ("ctx-size", "parallel")


@dataclass(frozen=True)
class Asked:
    """One instance with what is known for its plan.

    instance: of `instances_for`. device: cuda or cpu. model: None where it cannot be read yet, and `why_not` says so.
    cards: those of its GPU role, empty on the processor. memory_bytes: main memory. amx: the processor has AMX.
    """

    instance: Mapping[str, Any]
    device: str
    model: Model | None
    cards: tuple[Card, ...] = ()
    memory_bytes: float | None = None
    why_not: str = ""
    headroom_bytes: float = 0
    amx: bool = False

    @property
    def name(self) -> str:
        return str(self.instance["name"])

    @property
    def engine(self) -> str:
        return str(self.instance.get("engine") or "vllm")


@dataclass(frozen=True)
class Planned:
    """The answer for one instance.

    flags: options to add to the instance's own. context, parallel: what these keys become where the inventory leaves
    them open, else None. problem: why the start is refused, '' when it is not.
    """

    name: str
    device: str
    verdict: str
    reason: str
    plan: Plan | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    context: int | None = None
    parallel: int | None = None
    problem: str = ""
    remedies: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; sizes in bytes. `plan` is None where nothing was summed."""
        return {
            "name": self.name,
            "device": self.device,
            "verdict": self.verdict,
            "reason": self.reason,
            "flags": dict(self.flags),
            "environment": dict(self.environment),
            "context": self.context,
            "parallel": self.parallel,
            "problem": self.problem,
            "remedies": list(self.remedies),
            "plan": self.plan.to_dict() if self.plan else None,
        }


def plan_instances(
    asked: Sequence[Asked], kept: Mapping[str, Mapping[str, Any]] | None = None, keep_refused: bool = False
) -> dict[str, dict[str, Any]]:
    """Plan all instances of a host, those that share a card together; returns {name: Planned.to_dict()}.

    kept: plans on record. Those of a group are taken as they are while nothing that was asked has changed, whatever
    others hold on the cards by now: an engine that runs is not restarted because somebody opened a window.
    keep_refused: also those of instances that are started by force. Instances on the processor share its memory.
    Nothing raises: what cannot be planned has the verdict 'not planned', what must not start has a `problem`.
    """
    found: dict[str, dict[str, Any]] = {}
    for group in _groups(asked):
        together = [inputs_of(one) for one in group]
        inputs = {one.name: _digest([own, sorted(together)]) for one, own in zip(group, together, strict=True)}
        old = {name: dict((kept or {}).get(name) or {}) for name in inputs}
        if all(_may_stay(old[name], digest, keep_refused) for name, digest in inputs.items()):
            found |= old
        else:
            for planned in _plan_group([_with_memory_left(one, found) for one in group]):
                found[planned.name] = {**planned.to_dict(), "inputs": inputs[planned.name]}
    return {one.name: found[one.name] for one in asked}


def _may_stay(old: Mapping[str, Any], digest: str, keep_refused: bool) -> bool:
    same = old.get("inputs") == digest and old.get("verdict") != NOT_PLANNED
    return same and (keep_refused or not old.get("problem"))


def _with_memory_left(asked: Asked, found: Mapping[str, Mapping[str, Any]]) -> Asked:
    """On the processor: without the main memory that the instances before it take."""
    if asked.device != "cpu" or asked.memory_bytes is None:
        return asked
    taken = 0.0
    for one in found.values():
        if one["device"] == "cpu" and one["plan"]:
            taken += sum(card["parts"]["weights"]["likely"] + card["pool"]["likely"] for card in one["plan"]["cards"])
    return replace(asked, memory_bytes=max(asked.memory_bytes - taken, 1.0))


def shrinking_first(plans: Mapping[str, Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The instances in the order in which they are to be started: who gives memory of a card back comes first.

    An engine takes its share when it starts and refuses to where another one still holds it.
    """

    def share(one: Mapping[str, Any] | None) -> float:
        cards = ((one or {}).get("plan") or {}).get("cards") or []
        return float(sum(card["budget_bytes"] for card in cards))

    growth = {name: share(one) - share(before.get(name)) for name, one in plans.items()}
    return sorted(plans, key=lambda name: min(growth[name], 0.0))


def _groups(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Instances by the cards that they share, directly or through others."""
    groups: list[list[Asked]] = []
    for one in asked:
        keys = {card.uuid for card in one.cards}
        sharing = [group for group in groups if keys & {card.uuid for other in group for card in other.cards}]
        merged = [*(other for group in sharing for other in group), one]
        groups = [*(group for group in groups if group not in sharing), merged]
    return groups


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def wishes_of(instance: Mapping[str, Any], headroom_bytes: float = 0) -> Wishes:
    """What the instance asks for. Raises PlanError naming an option whose value is no number."""
    flags = normal_flags(instance)
    if str(instance.get("engine") or "vllm") != "vllm":
        return _wishes_of_llama(instance, flags, headroom_bytes)
    values: dict[str, Any] = {}
    for name, wish in _COUNTED.items():
        if name in flags:
            values[wish] = _as(wish, name, flags[name])
    offload = float(_as("utilization", "cpu-offload-gb", flags.get("cpu-offload-gb", 0)))
    return Wishes(
        context=_whole(instance.get("context")),
        max_num_seqs=_whole(instance.get("parallel")),
        headroom_bytes=headroom_bytes,
        cpu_offload_bytes=offload * GIB,
        allow_unequal="tensor-parallel-size" in flags,
        **values,
    )


def _wishes_of_llama(instance: Mapping[str, Any], flags: Mapping[str, Any], headroom_bytes: float) -> Wishes:
    layers = next((flags[name] for name in ("n-gpu-layers", "gpu-layers", "ngl") if name in flags), None)
    return Wishes(
        context=_whole(instance.get("context")),
        slots=_whole(instance.get("parallel")) or 1,
        kv_dtype=str(flags.get("cache-type-k", "auto")),
        gpu_layers=int(_as("gpu_layers", "n-gpu-layers", layers)) if str(layers or "").isdigit() else None,
        headroom_bytes=headroom_bytes,
    )


def normal_flags(instance: Mapping[str, Any]) -> dict[str, Any]:
    """The instance's options by the names that the engine compares."""
    found = {}
    for written, value in (instance.get("flags") or {}).items():
        head, dot, key = str(written).partition(".")
        found[head.replace("_", "-") + dot + key] = value
    return found


def inputs_of(asked: Asked) -> str:
    """A digest of what decides a plan, but for what others hold on the cards at this moment."""
    instance = asked.instance
    model = asked.model
    tensors = hashlib.sha256()
    for tensor in sorted(model.tensors or (), key=lambda each: each.name) if model else ():
        tensors.update(f"{tensor.name} {tensor.dtype} {tensor.shape}\n".encode())
    keys = ("name", "context", "parallel", "task", "gpu_role", "flags")
    what = {
        "instance": {key: instance.get(key) for key in keys},
        "device": asked.device,
        "engine": [asked.engine, ENGINES[asked.device].version, PLANNER],
        "config": dict(model.config) if model else None,
        "tensors": tensors.hexdigest(),
        "cards": [[card.uuid, card.name, card.total_bytes] for card in asked.cards],
        "headroom_bytes": asked.headroom_bytes,
        "memory_bytes": asked.memory_bytes if asked.device == "cpu" else None,
    }
    return _digest(what)


def _whole(value: Any) -> int | None:
    return int(value) if value else None


def _as(wish: str, name: str, value: Any) -> Any:
    if wish == "kv_dtype":
        return str(value)
    if wish == "enforce_eager":
        return value is True or str(value).lower() == "true"
    try:
        return float(value) if wish == "utilization" else parse_bytes(value)
    except (TypeError, ValueError) as error:
        raise PlanError(f"flags.{name} is {value!r}; needed is a number") from error


def _plan_group(group: Sequence[Asked]) -> Iterator[Planned]:
    """Plan instances that share cards, or one alone."""
    left: list[tuple[Asked, Request]] = []
    unknown: list[Asked] = []
    held_bytes = 0.0
    for asked in group:
        reason = _unplannable(asked)
        if reason or asked.model is None:
            yield _not_planned(asked, reason)
            unknown.append(asked)
            continue
        try:
            wishes = wishes_of(asked.instance, asked.headroom_bytes)
            if asked.cards:
                check(Request(asked.model, asked.cards, asked.engine, None, wishes))
        except PlanError as error:
            yield Planned(asked.name, asked.device, FAILS, str(error), problem=f"instance {asked.name}: {error}")
            continue
        try:
            if asked.device == "cpu":
                yield _answer(asked, _on_cpu(asked, asked.model, wishes))
            elif asked.engine != "vllm":
                left.append((asked, Request(asked.model, asked.cards, asked.engine, None, wishes)))
            elif asked.model.config.get("model_type") in WITHOUT_CACHE:
                planned, taken_bytes = _encoder(asked, asked.model)
                held_bytes += taken_bytes
                yield planned
            else:
                model = _with_quantization(asked.model, asked.instance)
                left.append((asked, Request(model, asked.cards, "vllm", ENGINES["cuda"].version, wishes)))
        except ValueError as error:
            yield _not_planned(asked, str(error))
            unknown.append(asked)
    yield from _with_neighbours(
        left, [one for one in unknown if not SHARES & set(normal_flags(one.instance))], held_bytes
    )


def _with_neighbours(
    left: Sequence[tuple[Asked, Request]], unknown: Sequence[Asked], held_bytes: float
) -> Iterator[Planned]:
    """Plan those that can be summed, beside encoders that hold `held_bytes` and instances of which nothing is known."""
    if unknown and left and unknown[0].device == "cuda":
        names = " and ".join(one.name for one in unknown)
        for asked, _request in left:
            reason = f"it shares its card with {names}, of which nothing can be summed; write gpu-memory-utilization"
            yield _not_planned(asked, f"{reason} under flags of each")
        return
    if held_bytes:
        left = [
            (asked, replace(request, cards=tuple(_fuller(card, held_bytes) for card in request.cards)))
            for asked, request in left
        ]
    if len(left) == 1:
        yield _alone(*left[0])
    elif left:
        yield from _together(left)


def _fuller(card: Card, more_bytes: float) -> Card:
    free = None if card.free_bytes is None else max(card.free_bytes - more_bytes, 0)
    return replace(card, others_bytes=card.others_bytes + more_bytes, free_bytes=free)


def _encoder(asked: Asked, model: Model) -> tuple[Planned, float]:
    """(the answer, bytes that it takes at most) for a model without keys and values: its weights and an allowance."""
    made = plan_cpu(Request(model, (), "vllm", ENGINES["cpu"].version), 1 << 30)
    weights = made.cards[0].parts["weights"].likely
    taken, room = weights + ENCODER_BYTES, asked.cards[0].total_bytes - asked.cards[0].others_bytes
    reason = (
        f"an encoder keeps no keys and values; it takes {weights / GIB:.2f} GiB of weights and at most "
        f"{ENCODER_BYTES / GIB:.0f} GiB beside them, and {asked.cards[0].name} has {room / GIB:.2f}"
    )
    return Planned(asked.name, asked.device, FITS if taken <= room else UNKNOWN, reason), taken


def _unplannable(asked: Asked) -> str:
    if asked.model is None:
        return asked.why_not
    if asked.device == "cpu":
        return "" if asked.engine == "vllm" else f"{asked.engine} on the processor takes main memory as it needs it"
    if not asked.cards:
        return "no card is known for it"
    uncounted = [
        name
        for name, value in normal_flags(asked.instance).items()
        if (name.partition(".")[0] in UNCOUNTED and (value is not False or name == "enable-chunked-prefill"))
        or (name in COUNTED_VALUES and str(value) not in COUNTED_VALUES[name])
    ]
    return f"the planner does not count {' and '.join(uncounted)}" if uncounted and asked.engine == "vllm" else ""


def _on_cpu(asked: Asked, model: Model, wishes: Wishes) -> Plan:
    written = normal_flags(asked.instance).get("kv-cache-memory-bytes", CPU_KV_BYTES)
    return plan_cpu(
        Request(model, (), "vllm", ENGINES["cpu"].version, wishes),
        float(parse_bytes(str(written))),
        asked.memory_bytes,
        asked.amx,
    )


def _with_quantization(model: Model, instance: Mapping[str, Any]) -> Model:
    """fp8 on a 16-bit model: the engine quantizes while it loads."""
    wanted = normal_flags(instance).get("quantization")
    return replace(model, quantization="fp8") if wanted == "fp8" and not model.quantization else model


def _alone(asked: Asked, request: Request) -> Planned:
    try:
        return _answer(asked, plan(request, always_remedies=True))
    except ValueError as error:
        return _not_planned(asked, str(error))


def _together(left: Sequence[tuple[Asked, Request]]) -> list[Planned]:
    """Each gets room for as many requests of full length as let all of them fit, and those that leave their context
    open the longest one; explicit shares stay as written.
    """
    best: list[Plan] = []
    open_ones = any(request.wishes.context is None for _asked, request in left)
    for context in SHARED_CONTEXTS if open_ones else (0,):
        for count in SHARED_REQUESTS if context <= SHARED_CONTEXTS[-4] else SHARED_REQUESTS[-1:]:
            try:
                best = plan_together([_sharing(request, context, count) for _asked, request in left])
            except ValueError as error:
                return [_not_planned(asked, f"planned with others on its card: {error}") for asked, _request in left]
            if all(made.verdict == FITS for made in best):
                return [_answer(asked, made) for (asked, _request), made in zip(left, best, strict=True)]
    return [_answer(asked, made) for (asked, _request), made in zip(left, best, strict=True)]


def _sharing(request: Request, context: int, count: int) -> Request:
    """The request with room for `count` requests, and `context` where it names none."""
    wishes = request.wishes
    longest = longest_context(request.model.config) or context
    return replace(
        request,
        wishes=replace(
            wishes,
            concurrency=min(count, wishes.max_num_seqs or count),
            context=wishes.context or min(context, longest),
        ),
    )


def _not_planned(asked: Asked, reason: str) -> Planned:
    return Planned(asked.name, asked.device, NOT_PLANNED, reason)


def _answer(asked: Asked, made: Plan) -> Planned:
    """What of the plan is new to the instance, and whether it may start."""
    instance, given = asked.instance, normal_flags(asked.instance)
    chosen = asked.device == "cuda" and made.verdict != FAILS
    same = {"device-memory-utilization": "gpu-memory-utilization"}
    written = {same.get(name, name) for name in given}
    flags = {name: value for name, value in made.flags.items() if name not in {*written, *_BY_KEY, *_BY_KEYS_OF_LLAMA}}
    open_keys = {
        key: int(made.flags[name]) if not instance.get(key) and name in made.flags else None
        for name, key in _BY_KEY.items()
    }
    remedies = tuple(words for remedy in made.remedies if (words := _remedy_words(remedy.action, remedy.verdict)))
    return Planned(
        name=asked.name,
        device=asked.device,
        verdict=made.verdict,
        reason=made.reason,
        plan=made,
        flags=flags if chosen else {},
        environment=made.environment if chosen else {},
        context=open_keys["context"] if made.verdict != FAILS and not _is_the_models_own(asked, made) else None,
        parallel=open_keys["parallel"] if chosen else None,
        problem=_problem(asked, made, remedies) if made.verdict == FAILS else "",
        remedies=remedies,
    )


def _is_the_models_own(asked: Asked, made: Plan) -> bool:
    """Whether the chosen context is only the model's limit, which for texts to embed the engine knows better."""
    limit = longest_context(asked.model.config) if asked.model else 0
    return asked.instance.get("task") == "embed" and made.context >= (limit or made.context)


def _remedy_words(action: str, verdict: str) -> str:
    if verdict == FAILS:
        return ""
    return action if verdict == FITS else f"{action} (perhaps)"


def _problem(asked: Asked, made: Plan, remedies: Sequence[str]) -> str:
    """Why it is refused: what was asked, what is there, the largest that fits, what would help."""
    where = " and ".join(dict.fromkeys(card.card for card in made.cards)) or "this host"
    context = asked.instance.get("context")
    fitting = made.largest_context
    lines = [f"instance {asked.name}: {made.model} does not fit on {where}: {made.reason}."]
    others = max((card.others_bytes for card in asked.cards), default=0)
    if others:
        lines.append(f"Others hold {others / GIB:.2f} GiB of the card.")
    if context and 0 < fitting < int(context):
        lines.append(
            f"You asked for a context of {context} tokens, the largest that fits is {fitting}: write context: {fitting}"
            + (", or turn one of these:" if remedies else ".")
        )
    elif remedies:
        lines.append("What would help:")
    lines += [f"  - {words}" for words in remedies[:REMEDIES_SHOWN]]
    return "\n".join(lines)


def doubts_of(plans: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a person should know of starts that are not refused and not sure, in sentences."""
    found = []
    for one in plans:
        if one["verdict"] == UNKNOWN:
            found.append(f"instance {one['name']}: whether it fits cannot be said for sure: {one['reason']}")
        elif one["verdict"] == NOT_PLANNED and one["device"] == "cuda":
            found.append(f"instance {one['name']}: its memory is not planned: {one['reason']}")
    return found


def plan_text(plans: Iterable[Mapping[str, Any]]) -> str:
    """The plans for a person: verdict, sums, options and their reasons, remedies; one block for each instance."""
    return "\n\n".join("\n".join(_lines_of(one)) for one in plans)


def _lines_of(one: Mapping[str, Any]) -> Iterator[str]:
    yield f"{one['name']}: {one['verdict']}" + ("" if one["plan"] else f", {one['reason']}")
    made = one["plan"]
    if not made:
        return
    yield from (f"  {line}" for line in str(made["sum"]).splitlines())
    yield (
        f"  longest context that fits: {made['largest_context']} tokens; requests of {made['context']} tokens at once: "
        f"{made['concurrency']:.1f}"
    )
    if one["flags"] or one["context"] or one["parallel"]:
        keys = {key: one[key] for key in ("context", "parallel") if one[key]}
        yield "  chosen: " + ", ".join(f"{name} {value}" for name, value in {**keys, **one["flags"]}.items())
    yield from (f"  because {reason}" for reason in made["reasons"])
    if one["verdict"] != FITS:
        yield from (f"  would help: {words}" for words in one["remedies"])
