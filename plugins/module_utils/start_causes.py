# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why an engine did not start, and what it does while it starts, read from its log. (pure)

CAUSES is a table: what the log of vLLM or llama.cpp says, the cause in one sentence, the remedy in keys of the
inventory. Every text in it is one that an engine printed; tests/data/start_logs holds the logs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from .diagnosis import bare, is_of_systemd, last_error_line

LOG_LINES: Final = 600
"""Lines to read for a diagnosis: vLLM repeats the traceback of its engine process in its server process."""

UNKNOWN: Final = "unknown"
UNKNOWN_LINES: Final = 5
CONTEXT_STEP: Final = 256
LINE_LETTERS: Final = 2000
"""As much of a line is looked at, so that no log takes long."""
MESSAGE_LETTERS: Final = 800
"""As much of a log's line is repeated; vLLM prints lists of all it knows."""

# What a new start of a service begins with. Under supervisord its log also holds the starts before.
_START = re.compile(
    r"^gpurig exec: \S+: (start \d+ in a row|GPU role )|^(Starting|Started) .*\.\.\.$|^Started "
    r"|vLLM API server version|█\s+version \d|^usage: |^[0-9.]+ I srv +init: initializing"
)
_BUDGET = re.compile(r"^gpurig exec: .*the restart budget is spent")

Values = Mapping[str, str]


def _any(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.MULTILINE) for pattern in patterns)


@dataclass(frozen=True)
class Cause:
    """One named cause.

    says      any of these stands in the log of one start; their named groups are the cause's values
    sentence  what happened, with {names} of values; a value that the log did not give is '?'
    remedy    what to change in the inventory or on the host; text with {names}, or a function of the values
    after     all of these stand before it as well
    unless    none of these stands in the log: another cause explains them better
    weak      counts only where no other cause is found
    memory    the memory planner knows better remedies
    """

    name: str
    says: tuple[re.Pattern[str], ...]
    sentence: str
    remedy: str | Callable[[Values], str]
    after: tuple[re.Pattern[str], ...] = ()
    unless: tuple[re.Pattern[str], ...] = ()
    weak: bool = False
    memory: bool = False


@dataclass(frozen=True)
class Ending:
    """What is known of an end beside the log.

    memory_kill  the evidence, in words, that the kernel killed for lack of memory meanwhile; '' without
    again        the service has been started again since, so that the log goes on with the next start
    """

    memory_kill: str = ""
    again: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """Why a start failed. `values`: what the log gave, as text. `line`: the line that a person should read first."""

    cause: str
    sentence: str
    remedy: str
    line: str
    values: Values = field(default_factory=dict)

    def message(self) -> str:
        """Cause, remedy and line as one text."""
        line = re.sub(r" \[type=\w+, input_value=.*", "", self.line)
        said = f" Its log says: {line[:MESSAGE_LETTERS]}" if line else " Its log is empty."
        return " ".join(part for part in (self.sentence, self.remedy) if part) + said


# --- remedies that are computed from the log's values


def _shorter(values: Values) -> str:
    estimate = int(values.get("estimate") or 0)
    if estimate >= CONTEXT_STEP:
        largest = estimate // CONTEXT_STEP * CONTEXT_STEP
        return (
            f"Write context: {largest} or less for this instance (the engine's own estimate of what fits is "
            f"{estimate}), or give it more memory: flags.kv-cache-dtype: fp8, a smaller quantization of the model, or "
            f"a gpu_role with more memory."
        )
    return (
        "Write a smaller context for this instance, or give it more memory: flags.kv-cache-dtype: fp8, a smaller "
        "quantization of the model, or a gpu_role with more memory."
    )


def _older_context(values: Values) -> str:
    largest = int(values.get("estimate") or 0) // CONTEXT_STEP * CONTEXT_STEP
    return f"Write context: {largest} or less for this instance." if largest else "Write a smaller context."


def _limit(values: Values) -> str:
    if values.get("limit"):
        return f"Write context: {values['limit']} or less for this instance."
    return "Write a smaller context for this instance."


def cuda_version(number: str) -> str:
    """Return the CUDA version that torch prints as 12080: 12.8; the text itself when it is something else."""
    return f"{int(number) // 1000}.{int(number) % 1000 // 10}" if number.isdigit() and len(number) >= 4 else number


def _newer_driver(values: Values) -> str:
    seen = f"The driver knows CUDA {cuda_version(values['found'])}. " if values.get("found") else ""
    return (
        f"{seen}Install a newer driver (branch 580 or later for CUDA 13), or run this model with engine: llama_cpp. On "
        f"a rented machine or in a container the driver is the provider's: choose another machine or image."
    )


def _capability(values: Values) -> str:
    has, needs = (".".join(values[key]) if key in values else "?" for key in ("has", "needs"))
    return (
        f"The card has compute capability {has}, needed is {needs}. Choose "
        f"another format of the model (AWQ or GPTQ run from 7.5 on), a newer card by gpu_role, or engine: llama_cpp."
    )


def _split(values: Values) -> str:
    heads = int(values.get("heads") or 0)
    fitting = [str(number) for number in range(1, 17) if heads and heads % number == 0]
    some = f" (possible here: {', '.join(fitting)})" if fitting else ""
    return (
        f"Write flags.tensor-parallel-size as a divisor of the model's attention heads{some}, or share the model by "
        f"layers: flags.pipeline-parallel-size."
    )


# --- the table

_POOL = _any(
    r"Available KV cache memory:", r"KV cache size: [\d,]+ tokens", r"memory reserved for KV Cache", r"# GPU blocks:"
)
_POOL_OR_LATER = re.compile(
    "|".join(pattern.pattern for pattern in _POOL)
    + r"|Graph capturing finished|[Cc]apturing (CUDA|cuda)|capture_model|capture_end"
)
_CUDA_OOM = _any(
    r"OutOfMemoryError: (CUDA )?out of memory\. Tried to allocate (?P<wanted>[\d.]+ [KMG]iB)"
    r"(\. GPU (?P<card>\d+) has a total capacity of (?P<total>[\d.]+ [KMG]iB) of which (?P<free>[\d.]+ [KMG]iB) is "
    r"free)?",
    r"CUDA error: out of memory",
)
_LOADED = re.compile(r"Model loading took|Loading model weights took|model weights take|profile_run")
_SAMPLER = re.compile(r"CUDA out of memory occurred when warming up")
_LLAMA_LOADING = re.compile(r"unable to allocate (CUDA|ROCm|Vulkan)\d+ buffer")
_OOM_KILL = re.compile(r"killed by the OOM killer|result 'oom-kill'")

_ROOM_ON_HOST: Final = (
    "Give the host more memory or swap, lower what the instance takes of it (flags.kv-cache-memory-bytes on a CPU, "
    "flags.cpu-offload-gb), choose a smaller quantization, or stop something else."
)
_FETCH_AGAIN: Final = (
    "Run the playbook with the tag models: it finds the damaged file by its checksum and fetches it again. Files of "
    "source: local have to be copied again by hand."
)
_PARSERS: Final = "The role knows the parsers of common models, so leaving the flag out is often right."

CAUSES: Final[tuple[Cause, ...]] = (
    Cause(
        "no_kv_memory",
        _any(
            r"No available memory for the cache blocks",
            r"Available KV cache memory: -",
            r"less than requested memory for kv \(-",
        ),
        "The weights and the engine's working memory fill its share of the card; nothing is left for the KV cache.",
        "Choose a smaller quantization of the model or a gpu_role with more memory; lower parallel; or raise "
        "flags.gpu-memory-utilization if nothing else needs the card.",
        memory=True,
    ),
    Cause(
        "context_too_long_for_memory",
        _any(
            r"max seq len \((?P<context>\d+)\), \((?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the "
            r"available KV cache memory \((?P<available>[\d.]+) GiB\)\.(.*?estimated maximum model length is "
            r"(?P<estimate>\d+))?",
        ),
        "One request of {context} tokens needs {needed} GiB of KV cache, and {available} GiB are left.",
        _shorter,
        memory=True,
    ),
    Cause(
        "context_too_long_for_blocks",
        _any(
            r"max seq len \((?P<context>\d+)\) is larger than the maximum number of tokens that can be stored in KV "
            r"cache \((?P<estimate>\d+)\)"
        ),
        "One request of {context} tokens does not fit into the KV cache, which holds {estimate}.",
        _older_context,
        memory=True,
    ),
    Cause(
        "context_above_model",
        _any(
            r"max_model_len \((?P<context>\d+)\) is greater than the derived max_model_len \([^)]*?=(?P<limit>\d+)"
            r"[^)\d]"
        ),
        "The context of {context} tokens is longer than what the model was made for ({limit}).",
        _limit,
    ),
    Cause(
        "memory_taken_by_others",
        _any(
            r"Free memory on device(?: \S+)? \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than "
            r"desired GPU memory utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)"
        ),
        "Of the card's {total} GiB only {free} are free, and the engine is to take {wanted} (share {share}): another "
        "process holds the rest.",
        "End the other process (nvidia-smi lists them), use another gpu_role, or lower "
        "flags.gpu-memory-utilization below free/total.",
        memory=True,
    ),
    Cause(
        "memory_changed_meanwhile",
        _any(
            r"Error in memory profiling\. Initial free memory (?P<before>[\d.]+)(?: GiB)?,\s*current free memory "
            r"(?P<after>[\d.]+)"
        ),
        "Another process freed memory of the card while the engine measured it ({before} GiB free before, {after} "
        "after), so that it could not tell its own share.",
        "Start the instances of one card one after the other, and nothing else on it meanwhile; then run the playbook "
        "again.",
    ),
    Cause(
        "out_of_memory_loading",
        _CUDA_OOM,
        "The card's memory ended while the weights were loaded ({wanted} wanted, {free} of {total} free).",
        "Choose a smaller quantization of the model, more cards (flags.tensor-parallel-size), a gpu_role with more "
        "memory, or engine: llama_cpp, which can leave layers in main memory.",
        unless=(_POOL_OR_LATER, _LOADED, _SAMPLER),
        memory=True,
    ),
    Cause(
        "out_of_memory_profiling",
        _CUDA_OOM,
        "The weights fit, but the card's memory ended in the trial run of the largest batch ({wanted} wanted, {free} "
        "of {total} free).",
        "Lower flags.max-num-batched-tokens and parallel, for a model that sees pictures flags.limit-mm-per-prompt; or "
        "choose a smaller quantization.",
        after=(_LOADED,),
        unless=(_POOL_OR_LATER, _SAMPLER),
        memory=True,
    ),
    Cause(
        "out_of_memory_after_pool",
        _CUDA_OOM,
        "The KV cache was granted, and then the card's memory ended while graphs were captured ({wanted} wanted, "
        "{free} of {total} free).",
        "Lower flags.gpu-memory-utilization (raising it makes this worse) or parallel, or set flags.enforce-eager: "
        "true, which does without graphs and is slower.",
        after=(_POOL_OR_LATER,),
        unless=(_SAMPLER,),
        memory=True,
    ),
    Cause(
        "out_of_memory_sampler",
        _any(r"CUDA out of memory occurred when warming up \w+.*? with (?P<requests>\d+) dummy requests"),
        "The card's memory ended when the engine tried {requests} requests at once.",
        "Write a smaller parallel for this instance, {requests} is the engine's default for a large card; or lower "
        "flags.gpu-memory-utilization.",
        memory=True,
    ),
    Cause(
        "out_of_memory_llama_weights",
        _any(r"unable to allocate (?P<buffer>(CUDA|ROCm|Vulkan)\d+) buffer"),
        "llama.cpp could not put the model's layers on the card {buffer}.",
        "Write a smaller flags.n-gpu-layers, so that layers stay in main memory, choose a smaller quantization, or a "
        "gpu_role with more memory.",
        memory=True,
    ),
    Cause(
        "out_of_memory_llama_context",
        _any(r"failed to allocate (?P<buffer>(CUDA|ROCm|Vulkan)\d+) buffer of size (?P<bytes>\d+)"),
        "llama.cpp loaded the model, and then had no room on the card {buffer} for the context's cache or its "
        "computations.",
        "Write a smaller context or parallel (memory is for context times parallel), flags.cache-type-k and "
        "flags.cache-type-v: q8_0, or a smaller flags.n-gpu-layers.",
        unless=(_LLAMA_LOADING,),
        memory=True,
    ),
    Cause(
        "host_memory_llama",
        _any(r"insufficient memory \(attempted to allocate +(?P<wanted>[\d.]+) MB\)"),
        "The host's main memory has no {wanted} MB left for llama.cpp.",
        "Write a smaller context or parallel for this instance (memory is for context times parallel), choose a "
        "smaller quantization, or give the host more memory.",
        memory=True,
    ),
    Cause(
        "host_memory",
        _any(
            r"DefaultCPUAllocator: can't allocate memory: you tried to allocate (?P<wanted>\d+) bytes",
            r"^MemoryError\b",
            r"Cannot allocate memory",
            r"std::bad_alloc",
            r"Available memory on node .* less than requested memory for kv \([\d.]+ GiB",
        ),
        "The host's main memory is not enough for the engine.",
        _ROOM_ON_HOST,
        unless=_any(r"insufficient memory \(attempted"),
        memory=True,
    ),
    Cause(
        "killed_for_memory",
        (_OOM_KILL,),
        "The kernel killed the engine because the host's main memory was full.",
        _ROOM_ON_HOST,
        memory=True,
    ),
    Cause(
        "killed",
        _any(r"Engine core initialization failed\.", r"Engine core proc \S+ died unexpectedly", r"status=9/KILL"),
        "The engine's process ended without a word, as it does when it is killed from outside; lack of main memory is "
        "the usual reason, and nothing here proves it.",
        "Look for 'Out of memory' in the kernel's log (journalctl -k, or dmesg), and at the memory limit of the "
        "container.",
        unless=(
            _OOM_KILL,
            re.compile(r"EngineCore (failed to start|hit an exception)|^Process EngineCore", re.MULTILINE),
        ),
        weak=True,
    ),
    Cause(
        "driver_too_old",
        _any(
            r"NVIDIA driver on your system is too old \(found version (?P<found>\d+)\)",
            r"CUDA driver version is insufficient for CUDA runtime version",
        ),
        "The NVIDIA driver is too old for the CUDA that this engine was built with.",
        _newer_driver,
    ),
    Cause(
        "no_gpu",
        _any(
            r"No CUDA GPUs are available",
            r"Failed to infer device type",
            r"no CUDA-capable device is detected",
            r"Found no NVIDIA driver on your system",
        ),
        "The engine sees no GPU.",
        "Check with the playbook gpu.yml that the driver sees the cards of this gpu_role; in a container, that the "
        "GPUs are passed in. Without a card write device: cpu.",
    ),
    Cause(
        "dtype_needs_newer_card",
        _any(
            r"Bfloat16 is only supported on GPUs with compute capability of at least (?P<needs>[\d.]+\d)\. Your "
            r"(?P<card>.+?) GPU has compute capability (?P<has>[\d.]+\d)"
        ),
        "The card {card} (compute capability {has}) has no bfloat16, which the model is stored in; it needs {needs}.",
        "Write flags.dtype: half for this instance, or use a newer card by gpu_role.",
    ),
    Cause(
        "format_needs_newer_card",
        _any(
            r"quantization method (?P<format>\S+) is not supported for the current GPU\. Minimum capability: "
            r"(?P<needs>\d+)\. Current capability: (?P<has>\d+)",
            r"Quantization scheme is not supported for.*?Min(imum)? capability: (?P<needs2>\d+).*?Current capability: "
            r"(?P<has2>\d+)",
        ),
        "The card is too old for the format of this model.",
        _capability,
    ),
    Cause(
        "card_not_built_for",
        _any(r"no kernel image is available for execution on the device"),
        "The engine was not built for this generation of cards: it is too old, or newer than the engine.",
        "For a card below compute capability 7.5 write engine: llama_cpp; for a new one a newer version of the engine.",
    ),
    Cause(
        "card_by_uuid",
        _any(r"invalid literal for int\(\) with base 10: '(?P<card>(GPU|MIG)-[^']+)'"),
        "vLLM takes cards by number only, and was given {card}.",
        "Leave CUDA_VISIBLE_DEVICES out of the instance's environment; gpu_role names the card and the service finds "
        "its number at each start.",
    ),
    Cause(
        "p2p_refused",
        _any(r"peer access is not supported between these two devices"),
        "The cards cannot read each other's memory, which the engine tried.",
        "Write flags.disable-custom-all-reduce: true; GeForce cards have no peer access with NVIDIA's driver.",
    ),
    Cause(
        "nccl",
        _any(r"NCCL error(?: in)?: (?P<what>[^(\n]+)", r"ncclSystemError|ncclUnhandledCudaError|ncclInternalError"),
        "The cards could not be joined for one model: NCCL failed ({what}).",
        "Set NCCL_DEBUG: INFO in vllm_process_environment and read which step fails. In a container /dev/shm is often "
        "too small (give it 1 GiB or more); with cards on different root ports try NCCL_P2P_DISABLE: '1'.",
    ),
    Cause(
        "heads_do_not_divide",
        _any(
            r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
            r"\((?P<size>\d+)\)"
        ),
        "The model's {heads} attention heads cannot be shared by {size} cards.",
        _split,
    ),
    Cause(
        "no_numa_node_per_rank",
        _any(r"Not enough allowed NUMA nodes"),
        "On the processor vLLM wants one memory node per part of a split model, and the host has fewer.",
        "Leave flags.tensor-parallel-size out for device: cpu.",
    ),
    Cause(
        "gated_model",
        _any(
            r"Cannot access gated repo for url \S*?huggingface\.co/(?P<repo>[^/\s]+/[^/\s]+)",
            r"You are trying to access a gated repo",
        ),
        "The hub gives the model {repo} only to accounts that accepted its terms.",
        "Accept the terms on the model's page, then name a file with that account's token: hub.token_file of the model "
        "in rig_models.",
    ),
    Cause(
        "model_missing",
        _any(
            r"Repo id must be in the form .*?: '(?P<model>/[^']*)'",
            r"HFValidationError: Repo id must",
            r"Cannot find an appropriate cached snapshot folder",
            r"LocalEntryNotFoundError",
            r"RepositoryNotFoundError",
            r"^llama_server: error: the model file (?P<file>.+) does not exist",
            r"failed to open GGUF file '(?P<file2>[^']+)' \(No such file",
        ),
        "The model is not on this host, where the engine was told to look.",
        "Run the playbook with the tag models, which fetches it; with source: local correct the path of the model in "
        "rig_models. vLLM takes a folder that is not there for a name on the hub.",
    ),
    Cause(
        "model_file_damaged",
        _any(
            r"SafetensorError: Error while deserializing header: (?P<what>.+)",
            r"Error while deserializing header",
            r"data is not within the file bounds",
            r"gguf_init_from_\w+: failed to read",
        ),
        "A file of the model is cut off or damaged.",
        _FETCH_AGAIN,
    ),
    Cause(
        "not_a_model_file",
        _any(r"invalid magic characters: '(?P<found>.*?)', expected 'GGUF'"),
        "The model's file is no GGUF file.",
        "llama.cpp reads GGUF only: name such a file in rig_models (for a file on the hub its name), or use engine: "
        "vllm for safetensors. A web page saved in its place means that the download was refused.",
    ),
    Cause(
        "weights_missing",
        _any(r"Cannot find any model weights with `?(?P<model>[^`\n]+)"),
        "The model's folder holds no weights that the engine reads.",
        "Check the files of the model in rig_models: *.safetensors are needed, or format: gguf with engine: llama_cpp.",
    ),
    Cause(
        "weights_do_not_match",
        _any(
            r"There is no module or parameter named '(?P<tensor>[^']+)'",
            r"Following weights were not initialized from checkpoint",
            r"KeyError: '(?P<key>(model\.)?layers\.\d+\.[\w.]+)'",
        ),
        "The names of the tensors in the files are not those of the model's architecture.",
        "The files belong to another model, an adapter, or a conversion that this version of the engine does not know: "
        "check repo and revision of the model in rig_models.",
    ),
    Cause(
        "config_unreadable",
        _any(
            r"It looks like the config file at '(?P<file>[^']+)' is not a valid JSON",
            r"(does not appear to have a file named|Can't load the configuration|no config\.json).*config\.json",
            r"Invalid repository ID or local directory specified",
            r"should have a `model_type` key in its config\.json",
            r"No config\.json file found|Could not detect config format",
        ),
        "The model's config.json is missing or broken.",
        _FETCH_AGAIN,
    ),
    Cause(
        "tokenizer_missing",
        _any(
            r"Can't load tokenizer for '(?P<model>[^']+)'",
            r"Couldn't instantiate the backend tokenizer",
            r"(?:tokenizer\.json|tokenizer\.model).*(?:No such file|not found)",
            r"failed to load vocab|cannot find tokenizer",
        ),
        "The model's files hold no tokenizer.",
        "Fetch the model's tokenizer files as well (tokenizer.json, tokenizer_config.json), or name another folder "
        "with flags.tokenizer.",
    ),
    Cause(
        "chat_template_missing",
        _any(
            r"default chat template is no longer allowed",
            r"tokenizer\.chat_template is not set and no template argument was passed",
            r"must provide a chat template",
        ),
        "The model has no chat template, so that it cannot answer chat requests.",
        "Write flags.chat-template with the path of one, choose the 'instruct' sibling of this base model, or "
        "task: embed if it is for embeddings.",
    ),
    Cause(
        "chat_template_broken",
        _any(r"chat template parsing error: (?P<what>.+)", r"failed to initialize chat template"),
        "The engine cannot read the chat template.",
        "Correct flags.chat-template, or leave it out to take the model's own.",
    ),
    Cause(
        "architecture_unknown",
        _any(
            r"Model architectures \[(?P<architecture>[^\]]*)\] are not supported",
            r"model type `?(?P<architecture2>[\w-]+)`? but Transformers does not recognize this architecture",
            r"unknown model architecture: '(?P<architecture3>[^']+)'",
            r"has no vLLM implementation",
        ),
        "This version of the engine does not know the model's architecture {architecture}.",
        "A newer version of the engine may know it; else choose another model or the other engine.",
    ),
    Cause(
        "remote_code",
        _any(
            r"contains custom code which must be executed to correctly load the model",
            r"Please pass the argument `?trust_remote_code=True",
            r"requires you to execute the configuration file in that repo",
        ),
        "The model brings program code of its own, which the engine may not run.",
        "Choose a model that the engine knows without. If you have read that code at the pinned revision and trust it: "
        "flags.trust-remote-code: true.",
    ),
    Cause(
        "quantization_mismatch",
        _any(
            r"Cannot find the config file for (?P<format>\w+)",
            r"Quantization method specified in the model config \((?P<stored>\w+)\) does not match the quantization "
            r"method specified in the `quantization` argument \((?P<asked>\w+)\)",
        ),
        "flags.quantization names a format that the model's files are not in.",
        "Leave flags.quantization out: the engine reads the format from config.json.",
    ),
    Cause(
        "tool_parser_unknown",
        _any(r"invalid tool call parser: (?P<parser>\S+)(?: \(chose from \{ ?(?P<known>[^}]*)\})?"),
        "vLLM has no tool call parser named {parser}.",
        f"Correct flags.tool-call-parser; vllm serve --help=tool-call-parser lists them. {_PARSERS}",
    ),
    Cause(
        "tool_parser_missing",
        _any(r"--enable-auto-tool-choice requires --tool-call-parser"),
        "Tool calls are switched on without saying how this model writes them.",
        f"Write flags.tool-call-parser, or leave flags.enable-auto-tool-choice out. {_PARSERS}",
    ),
    Cause(
        "reasoning_parser_unknown",
        _any(r"invalid reasoning parser: (?P<parser>\S+)", r"Reasoning parser '(?P<parser2>[^']+)' not found"),
        "vLLM has no reasoning parser named {parser}.",
        f"Correct flags.reasoning-parser. {_PARSERS}",
    ),
    Cause(
        "port_taken",
        _any(r"[Aa]ddress already in use", r"couldn't bind HTTP server socket, hostname: \S+, port: (?P<port>\d+)"),
        "Another process listens on the instance's port.",
        "End that process (ss -ltnp shows it), or write another port for this instance.",
    ),
    Cause(
        "flag_unknown",
        _any(
            r"unrecognized arguments: (?P<flag>.+)",
            r"ambiguous option: (?P<flag2>\S+)",
            r"invalid argument: (?P<flag3>\S+)",
        ),
        "The engine does not know the option: {flag}",
        "Correct or remove it under flags of this instance; options change with the engine's version.",
    ),
    Cause(
        "flag_value",
        _any(r"error: argument (?P<flag>\S+?): (?P<what>.+)"),
        "The engine does not take the value of the option {flag}: {what}.",
        "Correct it under flags of this instance.",
        weak=True,
    ),
    Cause(
        "shared_memory_small",
        _any(r"Insufficient space in /dev/shm: (?P<needed>\d+ MiB) required, (?P<free>\d+ MiB) free"),
        "The engine's processes need {needed} of shared memory in /dev/shm, and {free} are free.",
        "Start the container with more of it (docker run --shm-size 1g, or the provider's setting), or remove what "
        "lies in /dev/shm.",
    ),
    Cause(
        "disk_full",
        _any(r"No space left on device(?:: '(?P<file>[^']+)')?", r"Disk quota exceeded"),
        "The disk is full ({file}).",
        "Make room on the file system of the rig's root (df -h); gpurig's cache folder may be emptied while the "
        "service is stopped. In a container also look at /dev/shm.",
    ),
    Cause(
        "no_permission",
        _any(
            r"(PermissionError: \[Errno 13\] Permission denied|OSError: \[Errno 30\] Read-only file system)"
            r"(?:: '(?P<file>[^']+)')?",
            r"failed to open GGUF file '(?P<file2>[^']+)' \(Permission denied\)",
        ),
        "The service's user may not read or write {file}.",
        "Run the playbook again, which sets the owners of everything below its root; with source: local give the group "
        "of the rig read access.",
    ),
    Cause(
        "compiler_missing",
        _any(
            r"Could not find nvcc",
            r"nvcc: not found|No such file or directory: '(\S*/)?(?P<tool>nvcc|ninja|gcc|cc)'",
            r"Failed to find C compiler|Python\.h: No such file",
        ),
        "The engine wants to compile a part of itself on this host, and the compiler is not there.",
        "Install gcc and the Python headers for triton; without nvcc set VLLM_USE_FLASHINFER_SAMPLER: '0' in "
        "vllm_process_environment.",
    ),
    Cause(
        "library_missing",
        _any(
            r"(?P<library>lib[\w+.-]+\.so[\w.]*): cannot open shared object file",
            r"ModuleNotFoundError: No module named '(?P<library2>[^']+)'",
            r"the OpenMP library (?P<library3>\S+) is missing",
        ),
        "The library {library} of the engine's environment cannot be loaded.",
        "libnuma.so.1 is the package libnuma1; libcuda.so.1 and libnvidia-ml.so.1 come with the driver. For any other "
        "run the playbook again with that environment's folder below envs removed; it is built anew.",
        weak=True,
    ),
    Cause(
        "refused_by_gpurig",
        _any(r"^gpurig exec: \S+: (?!start \d|GPU role |ending |.*restart budget is spent)(?P<why>.+)"),
        "The service was not started at all: {why}",
        "",
        weak=True,
    ),
)

NAMES: Final = tuple(cause.name for cause in CAUSES)


def starts(lines: Sequence[str]) -> list[list[str]]:
    """Return the log's lines by starts of the service, oldest first, without colours and the engine's line heads.

    A start of which only the service manager and the host tool wrote something is left out.
    """
    return [part for part in _all_starts(lines) if not _is_silent(part)]


def _all_starts(lines: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in (bare(line[:LINE_LETTERS]) for line in lines):
        if _START.search(line):
            found.append([])
        if line:
            found[-1].append(line)
    return found


def _is_silent(part: Sequence[str]) -> bool:
    return all(map(_silent, part))


def _silent(line: str) -> bool:
    return bool(_BUDGET.search(line) or re.match(r"gpurig exec: \S+: (start \d|GPU role |ending )", line)) or (
        is_of_systemd(line) and not _OOM_KILL.search(line)
    )


def matches(cause: Cause, text: str) -> tuple[int, Values] | None:
    """Return (where in the text the cause stands for the last time, its values); None when it does not."""
    if any(pattern.search(text) for pattern in cause.unless):
        return None
    found = sorted((hit for pattern in cause.says for hit in pattern.finditer(text)), key=lambda hit: hit.start())
    if not found or not all(pattern.search(text, 0, found[-1].start()) for pattern in cause.after):
        return None
    values: dict[str, str] = {}
    for hit in found:
        values |= {key.rstrip("23"): value.strip() for key, value in hit.groupdict().items() if value}
    return found[-1].start(), values


def classify(lines: Sequence[str]) -> tuple[Cause, Values, str] | None:
    """Return the cause in the log of one start, its values and the line that says so; None when no cause is found.

    Of several the one that stands last counts, because the engines go on after some errors.
    """
    text = "\n".join(lines)
    found = [(cause, hit) for cause in CAUSES if (hit := matches(cause, text))]
    if not found:
        return None
    cause, hit = max(found, key=lambda each: (not each[0].weak, each[1][0]))
    return cause, hit[1], text[text.rfind("\n", 0, hit[0]) + 1 :].partition("\n")[0]


class _Asked(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def remedy_of(cause: Cause, values: Values, planned: Sequence[str] = ()) -> str:
    """Return what to do. `planned`: what the memory planner found to help, best first; it beats the table's text."""
    if cause.memory and planned:
        return "What would help: " + "; ".join(planned) + "."
    return cause.remedy(values) if callable(cause.remedy) else cause.remedy.format_map(_Asked(values))


def diagnose(lines: Sequence[str], ending: Ending | None = None, planned: Sequence[str] = ()) -> Diagnosis:
    """Return why the service ended that wrote `lines`, oldest first; the cause is 'unknown' when nothing tells.

    Only the last start counts, or the one before when the service has been started again and has said nothing yet.
    """
    ending = ending or Ending()
    lines = [line[:LINE_LETTERS] for line in lines]
    parts = starts(lines)
    tail = parts[-1] if parts else []
    found = classify(tail)
    if ending.again and found is None and len(parts) > 1:
        tail = parts[-2]
        found = classify(tail)
    said = [line for line in tail if not _silent(line)] or lines
    if ending.memory_kill and (found is None or found[0].weak):
        killed = _CAUSE["killed_for_memory"]
        sentence = f"It was killed, probably by the kernel for lack of main memory: {ending.memory_kill}."
        return Diagnosis(killed.name, sentence, remedy_of(killed, {}, planned), last_error_line(said))
    if found is None:
        return Diagnosis(UNKNOWN, "The cause is not one of those known.", "", "\n  ".join(_last(said)))
    cause, values, line = found
    return Diagnosis(
        cause.name, cause.sentence.format_map(_Asked(values)), remedy_of(cause, values, planned), line, values
    )


def _last(said: Sequence[str]) -> Iterator[str]:
    """The last lines, and before them the telling one where it is not among them."""
    line, last = last_error_line(said), [bare(each) for each in said[-UNKNOWN_LINES:]]
    if line and line not in last:
        yield line
    yield from filter(None, last)


_CAUSE: Final[Mapping[str, Cause]] = MappingProxyType({cause.name: cause for cause in CAUSES})


# --- what a start is doing

IMPORTING: Final = "importing its libraries"

_PHASES: Final = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"answers on http|Application startup complete|server is listening", "serving"),
        (r"Starting vLLM server on|Waiting for application startup|Route: /", "opening its port"),
        (
            r"[Cc]apturing (?:CUDA graphs|CUDA graph shapes|cudagraphs)\D*?(?P<percent>\d+)%",
            "capturing graphs, {percent} %",
        ),
        (r"[Cc]apturing (?:CUDA graph|cudagraphs|the model for CUDA)", "capturing graphs"),
        (r"Graph capturing finished|init engine .*took|Warming up done|warming up the model", "warming up"),
        (r"llama threadpool init", "warming up"),
        (r"Profiling CUDA graph memory|Estimated CUDA graph memory", "measuring the graphs' memory"),
        (r"Available KV cache memory|KV cache size:|# (GPU|CPU|cpu) blocks|llama_kv_cache", "allocating the KV cache"),
        (r"Warming up model for the compilation|Dynamo bytecode|Compiling a graph|[Cc]ompiling model", "compiling"),
        (r"Using cache directory: .*torch_compile|Start compiling|torch\.compile and initial", "compiling"),
        (r"torch\.compile (takes|took)", "measuring memory with the largest batch"),
        (
            r"(?:checkpoint shards|Prefetching checkpoint files): +(?P<percent>\d+)%(?:\D*(?P<done>\d+)/(?P<all>\d+))?",
            "loading weights, {percent} % ({done} of {all} files)",
        ),
        (
            r"Loading weights took|Model loading took|Loading model weights took",
            "measuring memory with the largest batch",
        ),
        (r"Starting to load model|Loading model from scratch|loading model '|load_tensors", "loading weights"),
        (r"Initializing a V\d LLM engine|world_size=\d|rank \d+ in world size", "starting its processes"),
        (
            r"Resolved architecture|Using max model len|non-default args|\bversion \d",
            "reading the model's configuration",
        ),
    )
)


def start_phase(lines: Sequence[str]) -> str:
    """Return what the engine is doing, in words, from the service's log; '' when its lines do not tell.

    An engine that has said nothing yet is importing.
    """
    part = _all_starts(lines)[-1]
    if _is_silent(part):
        return IMPORTING
    for line in reversed(part):
        for pattern, words in _PHASES:
            if hit := pattern.search(line):
                return words.format_map(_Asked({key: value for key, value in hit.groupdict().items() if value}))
    return ""
