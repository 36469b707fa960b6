# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model consists of on disk: catalogue entries, and what is complete for its format. (pure)

Pure: a listing {relative path: size in bytes} and the first bytes of some files go in, a verdict in words comes out.
Formats: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

GGUF = "gguf"
SAFETENSORS_FAMILY = ("safetensors", "awq", "gptq", "fp8")
FORMATS = (GGUF, *SAFETENSORS_FAMILY)
SOURCES = ("package", "local", "hub")

FIRST_BYTES = 24  # enough to name a GGUF's version or a safetensors header's length
GGUF_HEAD_LIMIT_BYTES = 64 * 1024 * 1024
SAFETENSORS_HEADER_LIMIT_BYTES = 100_000_000  # the safetensors library refuses more
JSON_LIMIT_BYTES = 64 * 1024 * 1024

SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.(?P<suffix>gguf|safetensors)")
INDEX = "model.safetensors.index.json"
TOKENIZERS = (
    "tokenizer.json",
    "*.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "*.tiktoken",
    "tokenization_*.py",
)
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# quant_method of config.json that contradicts nothing: formats that carry several schemes.
QUANTIZATION_CONTAINERS = ("compressed-tensors", "modelopt", "quark", "auto-round", "inc")
# Weights of other frameworks beside safetensors in one repository: many GiB that no engine here reads.
OTHER_WEIGHTS = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.onnx_data",
    "*.tflite",
    "*.gguf",
    "*.mlmodel",
    "original/*",
    "onnx/*",
    "openvino/*",
    "coreml/*",
)

NEEDS = {
    GGUF: "one .gguf file (GGUF version 2 or 3), or every part of one split file (NAME-00001-of-0000N.gguf ...)",
    "safetensors": "config.json, the tokenizer's files, and model.safetensors or every shard that "
    "model.safetensors.index.json names",
    "awq": "what safetensors needs, with a quantization_config of method awq in config.json",
    "gptq": "what safetensors needs, with a quantization_config of method gptq in config.json",
    "fp8": "what safetensors needs, with a quantization_config of method fp8 in config.json",
}


class ModelEntryError(ValueError):
    """A catalogue entry that cannot mean a model; `problems` has one plain sentence for each mistake."""

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        super().__init__(f"rig_models.{name}: " + "; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class ModelEntry:
    """One model of the catalogue: `details` holds the keys of its source (package, local or hub)."""

    name: str
    source: str
    format: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What decides which bytes are meant: two entries with the same identity and format are the same model."""
        keys = {"package": ("package", "version", "sha256", "file"), "local": ("path",), "hub": ("repo", "revision")}
        identity: dict[str, Any] = {"kind": self.source}
        identity.update({key: self.details[key] for key in keys[self.source]})
        if self.source == "hub":
            identity["files"] = list(self.details.get("files") or [])
        return identity

    @property
    def origin(self) -> str:
        """Where the bytes come from, in words."""
        if self.source == "package":
            return f"the Python package {self.details['package']} {self.details['version']}"
        if self.source == "hub":
            return f"the hub's {self.details['repo']} at {str(self.details['revision'])[:12]}"
        return str(self.details["path"])

    @property
    def declared_bytes(self) -> int | None:
        """Download size that the catalogue states, in bytes; None when it does not."""
        value = self.details.get("download_bytes")
        return int(value) if value else None


@dataclass(frozen=True)
class Verdict:
    """`main` is what an engine gets: the .gguf file (first part of a split one), or "." for the directory itself.

    `files` are the files that belong to the model. `problems` is empty exactly when it is complete; `leftovers` are
    parts of broken downloads.
    """

    main: str
    files: tuple[str, ...]
    problems: tuple[str, ...]
    leftovers: tuple[str, ...]
    needs: str

    @property
    def complete(self) -> bool:
        return not self.problems


def parse_entry(name: str, source: str, model_format: str, details: Mapping[str, Any] | None) -> ModelEntry:
    """Check one catalogue entry; raises ModelEntryError with every mistake at once."""
    problems: list[str] = []
    given = {key: value for key, value in (details or {}).items() if value not in (None, "")}
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        problems.append(
            f"the name {name!r} becomes a directory: letters, digits, '.', '_', '-' only, first a letter or digit"
        )
    if source not in SOURCES:
        problems.append(f"source is {source!r}, known are {', '.join(SOURCES)}")
    if model_format not in FORMATS:
        problems.append(f"format is {model_format!r}, known are {', '.join(FORMATS)}")
    required = {"package": ("package", "version", "sha256", "file"), "local": ("path",), "hub": ("repo", "revision")}
    missing = [key for key in required.get(source, ()) if key not in given]
    if missing:
        problems.append(f"source {source} needs {', '.join(f'{source}.{key}' for key in missing)}")
    problems.extend(_value_problems(source, given))
    if problems:
        raise ModelEntryError(name, problems)
    return ModelEntry(name, source, model_format, given)


def _value_problems(source: str, given: Mapping[str, Any]) -> list[str]:
    def text(key: str) -> str:
        return str(given.get(key, ""))

    problems = []
    if source == "package":
        if "sha256" in given and not re.fullmatch(r"[0-9a-f]{64}", text("sha256")):
            problems.append(f"package.sha256 is {text('sha256')!r}, needed are 64 lower-case hex digits (of the wheel)")
        if "package" in given and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", text("package")):
            problems.append(f"package.package is {text('package')!r}, needed is the bare name of a Python package")
        if "version" in given and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*", text("version")):
            problems.append(f"package.version is {text('version')!r}, needed is one exact version such as 1.2.3")
        if "file" in given and not _safe_path(text("file")):
            problems.append(f"package.file is {text('file')!r}, needed is a path inside the wheel without '..'")
    elif source == "local":
        if "path" in given and not text("path").startswith("/"):
            problems.append(f"local.path is {text('path')!r}, needed is an absolute path on the host")
        elif ".." in PurePosixPath(text("path")).parts:
            problems.append(f"local.path is {text('path')!r}, needed is a path without '..'")
    elif source == "hub":
        if "repo" in given and not re.fullmatch(r"[\w.-]+/[\w.-]+", text("repo")):
            problems.append(f"hub.repo is {text('repo')!r}, needed is OWNER/NAME")
        if "revision" in given and not re.fullmatch(r"[0-9a-f]{40}", text("revision")):
            problems.append(
                f"hub.revision is {text('revision')!r}, needed is the full commit (40 lower-case hex digits): "
                "branches and tags move"
            )
    return problems


def _safe_path(path: str) -> bool:
    """A relative POSIX path that stays where it is put."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and "\0" not in path


# --- what to fetch, and which bytes to look at ---


def select_files(model_format: str, listing: Mapping[str, int], patterns: Sequence[str] = ()) -> list[str]:
    """The files of a repository that belong to the model, sorted.

    `patterns` are shell globs over the whole relative path ("x/" means everything below x), as the hub's client
    reads them. Without patterns: for gguf the .gguf files; for the safetensors family everything except other
    frameworks' weights, and without the second copy `consolidated*.safetensors` where sharded weights exist.
    """
    safe = sorted(path for path in listing if _safe_path(path))
    if patterns:
        globs = [f"{p}*" if p.endswith("/") else p for p in patterns]
        return [path for path in safe if any(fnmatchcase(path, glob) for glob in globs)]
    if model_format == GGUF:
        return [path for path in safe if path.endswith(".gguf")]
    chosen = [path for path in safe if not any(fnmatchcase(path, glob) for glob in OTHER_WEIGHTS)]
    if "config.json" in chosen and any(re.fullmatch(r"model.*\.safetensors", path) for path in chosen):
        chosen = [path for path in chosen if not fnmatchcase(path, "consolidated*.safetensors")]
    return [path for path in chosen if path not in (".gitattributes", "consolidated.safetensors.index.json")]


def heads_wanted(model_format: str, listing: Mapping[str, int]) -> list[str]:
    """The files of which `judge` wants the first bytes (`head_bytes` says how many)."""
    if model_format == GGUF:
        return sorted(path for path in listing if path.endswith(".gguf"))
    wanted = [path for path in ("config.json", INDEX) if path in listing]
    return wanted + sorted(path for path in listing if path.endswith(".safetensors") and "/" not in path)


def head_bytes(path: str, first: bytes, size: int) -> int:
    """How many bytes from the start of a file `judge` wants, given its first FIRST_BYTES bytes and its size."""
    if path.endswith(".safetensors"):
        header = struct.unpack("<Q", first[:8])[0] if len(first) >= 8 else 0
        return min(size, 8 + header) if header <= SAFETENSORS_HEADER_LIMIT_BYTES else min(size, 8)
    if path.endswith(".gguf"):
        return min(size, GGUF_HEAD_LIMIT_BYTES) if first[:4] == b"GGUF" else min(size, FIRST_BYTES)
    return min(size, JSON_LIMIT_BYTES)


# --- is it complete? ---


def judge(model_format: str, listing: Mapping[str, int], heads: Mapping[str, bytes] | None = None) -> Verdict:
    """Whether these files are a complete model of `model_format`.

    `listing` maps relative paths to sizes in bytes; `heads` maps some of them to their first bytes (files not in it
    are judged by name and size alone, so a repository can be judged before anything is downloaded).
    """
    heads = heads or {}
    leftovers = tuple(sorted(path for path in listing if path.endswith(".incomplete")))
    files = {path: size for path, size in listing.items() if path not in leftovers and not _is_cache(path)}
    if model_format == GGUF:
        main, own, problems = _judge_gguf(files, heads)
    else:
        main, own, problems = ".", sorted(files), _judge_safetensors(model_format, files, heads)
    if problems and leftovers:
        problems.append(f"left behind by a broken download: {_names(leftovers)}")
    return Verdict("" if problems else main, tuple(own), tuple(problems), leftovers, NEEDS[model_format])


def _is_cache(path: str) -> bool:
    return path.startswith((".cache/", ".git/")) or path == ".gpurig.json"


def _names(paths: Sequence[str], limit: int = 6) -> str:
    shown = ", ".join(list(paths)[:limit])
    return shown if len(paths) <= limit else f"{shown} and {len(paths) - limit} more"


def _parts_problems(group: Mapping[int, str], parts: int, stem: str, suffix: str) -> list[str]:
    missing = [f"{stem}-{n:05d}-of-{parts:05d}.{suffix}" for n in range(1, parts + 1) if n not in group]
    return [f"{len(missing)} of {parts} parts missing: {_names(missing)}"] if missing else []


def _judge_gguf(files: Mapping[str, int], heads: Mapping[str, bytes]) -> tuple[str, list[str], list[str]]:
    groups: dict[tuple[str, int], dict[int, str]] = {}
    projectors = []
    for path in sorted(path for path in files if path.endswith(".gguf")):
        if "mmproj" in PurePosixPath(path).name.lower():  # of a model that sees: beside it, no model by itself
            projectors.append(path)
            continue
        match = SPLIT.fullmatch(path)
        if match:
            groups.setdefault((match["stem"], int(match["parts"])), {})[int(match["part"])] = path
        else:
            groups[(path, 0)] = {1: path}
    if not groups:
        return "", [], [_no_gguf(files)]
    if len(groups) > 1:
        found = _names([stem for stem, _ in groups])
        remedy = "name one: local.path or package.file as a file, or hub.files as a pattern"
        return "", [], [f"{len(groups)} GGUF models are here ({found}); {remedy}"]
    ((stem, parts), group) = next(iter(groups.items()))
    problems = _parts_problems(group, parts, stem, "gguf") if parts else []
    for path in [*group.values(), *projectors]:
        problem = _gguf_problem(path, files[path], heads.get(path))
        if problem:
            problems.append(problem)
    return group[min(group)], sorted([*group.values(), *projectors]), problems


def _no_gguf(files: Mapping[str, int]) -> str:
    if any(path.endswith(".safetensors") for path in files):
        return "no .gguf file, but safetensors are here: is the format safetensors (or awq, gptq, fp8)?"
    return f"no .gguf file among {_names(sorted(files)) or 'no files at all'}"


def _gguf_problem(path: str, size: int, head: bytes | None) -> str | None:
    if size == 0:
        return f"{path} is empty"
    if head is None:
        return None
    if head[:4] != b"GGUF":
        return f"{path} is not a GGUF file: it begins with {head[:4]!r}, not b'GGUF'"
    version = struct.unpack("<I", head[4:8])[0] if len(head) >= 8 else -1
    if version not in (2, 3):
        big = len(head) >= 8 and struct.unpack(">I", head[4:8])[0] in (2, 3)
        found = "big-endian" if big else f"version {version}"
        return f"{path} is a GGUF file of {found}; engines here read little-endian versions 2 and 3"
    try:
        end = gguf_end(head)
    except EOFError:
        # The header goes on beyond what was read: the file's own end, or only our limit?
        return f"{path} is truncated: {size} bytes end within its header" if len(head) >= size else None
    except (ValueError, OverflowError) as exc:
        return f"{path} has a damaged GGUF header: {exc}"
    if end > size:
        return f"{path} is truncated: {size} of at least {end} bytes"
    return None


# Bytes of a value: gguf.md, enum gguf_metadata_value_type.
_GGUF_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY = 8, 9
# Tensor type -> (elements of a block, bytes of a block): gguf-py 0.19.0, gguf.constants.GGML_QUANT_SIZES.
GGML_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 40),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
    40: (64, 36),
    41: (128, 18),
}


class _GgufReader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise EOFError

    def number(self, form: str) -> int:
        start = self.at
        self.skip(struct.calcsize(form))
        return int(struct.unpack_from(form, self.data, start)[0])

    def string(self) -> bytes:
        length = self.number("<Q")
        start = self.at
        self.skip(length)
        return self.data[start : self.at]

    def value(self, kind: int) -> int | None:
        """Step over one value; unsigned 32-bit numbers are returned, the only ones anybody here needs."""
        if kind == 4:
            return self.number("<I")
        if kind in _GGUF_VALUE_BYTES:
            self.skip(_GGUF_VALUE_BYTES[kind])
        elif kind == _GGUF_STRING:
            self.string()
        elif kind == _GGUF_ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in _GGUF_VALUE_BYTES:
                self.skip(_GGUF_VALUE_BYTES[inner] * count)
            else:
                for _ in range(count):
                    self.value(inner)
        else:
            raise ValueError(f"unknown value type {kind}")
        return None


def gguf_end(head: bytes) -> int:
    """The size in bytes that a GGUF file must at least have, from its header (little-endian, version 2 or 3).

    Raises EOFError when `head` ends before the header does, ValueError when it is no header. Tensors of a type that
    is not in our table count with their first byte only, so the result is a lower bound.
    """
    reader = _GgufReader(head)
    reader.skip(8)
    tensors, pairs = reader.number("<Q"), reader.number("<Q")
    alignment = 32
    for _ in range(pairs):
        key, kind = reader.string(), reader.number("<I")
        value = reader.value(kind)
        if key == b"general.alignment" and value:
            alignment = value
    last = 0
    for _ in range(tensors):
        name, dimensions = reader.string(), reader.number("<I")
        if dimensions > 8:
            raise ValueError(f"tensor {name[:40]!r} claims {dimensions} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= reader.number("<Q")
        kind, offset = reader.number("<I"), reader.number("<Q")
        per_block, block_bytes = GGML_BLOCKS.get(kind, (0, 0))
        last = max(last, offset + (-(-elements // per_block) * block_bytes if per_block else 1))
    if not tensors:
        return reader.at
    return -(-reader.at // alignment) * alignment + last


def _judge_safetensors(
    model_format: str,
    files: Mapping[str, int],
    heads: Mapping[str, bytes],
) -> list[str]:
    weights = sorted(path for path in files if path.endswith(".safetensors") and "/" not in path)
    mistral = "config.json" not in files and "params.json" in files  # Mistral's own layout, which vLLM reads
    problems: list[str] = []
    config: dict[str, Any] = {}
    if "config.json" not in files and not mistral:
        problems.append(_no_config(files, weights))
    elif "config.json" in heads:
        try:
            config = _json_object(heads["config.json"])
        except ValueError as exc:
            problems.append(f"config.json is damaged: {exc}")
        else:
            problems.extend(_quantization_problems(model_format, config, files))
    if not any(fnmatchcase(path, name) for path in files for name in TOKENIZERS):
        problems.append("no tokenizer: none of tokenizer.json, tokenizer.model, vocab.json, tekken.json ... is here")
    problems.extend(_weights_problems(files, weights, heads))
    for path in weights:
        problem = _safetensors_problem(path, files[path], heads.get(path))
        if problem:
            problems.append(problem)
    return problems


def _no_config(files: Mapping[str, int], weights: Sequence[str]) -> str:
    if "adapter_config.json" in files:
        return "config.json is missing and adapter_config.json is here: this is a LoRA adapter, not a whole model"
    if not weights and any(path.endswith(".gguf") for path in files):
        return "config.json is missing, but .gguf files are here: is the format gguf?"
    return "config.json is missing"


def _weights_problems(files: Mapping[str, int], weights: Sequence[str], heads: Mapping[str, bytes]) -> list[str]:
    problems: list[str] = []
    named: set[str] = set()
    if INDEX in heads:
        try:
            named = {str(name) for name in dict(_json_object(heads[INDEX])["weight_map"]).values()}
        except (ValueError, KeyError, TypeError) as exc:
            problems.append(f"{INDEX} is damaged: {exc!r}")
    missing = sorted(named - set(weights))
    if missing:
        problems.append(f"{len(missing)} of {len(named)} shards that {INDEX} names are missing: {_names(missing)}")
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for path in weights:
        match = SPLIT.fullmatch(path)
        if match:
            groups.setdefault((match["stem"], int(match["parts"])), {})[int(match["part"])] = path
    if not missing:
        for (stem, parts), group in groups.items():
            problems.extend(_parts_problems(group, parts, stem, "safetensors"))
    if not weights and not missing:
        if any(fnmatchcase(path, "*.bin") or fnmatchcase(path, "*.pth") for path in files):
            problems.append("no .safetensors file, only weights in pickle files (.bin, .pth), which are not loaded")
        else:
            problems.append("no .safetensors file")
    return problems


def _safetensors_problem(path: str, size: int, head: bytes | None) -> str | None:
    if size < 8:
        return f"{path} is truncated: {size} bytes"
    if head is None:
        return None
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    if head[:1] == b"v" and head.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the file itself"
    if not 2 <= length <= SAFETENSORS_HEADER_LIMIT_BYTES:
        return f"{path} is not a safetensors file: its header would be {length} bytes long"
    if size < 8 + length:
        return f"{path} is truncated: {size} bytes end within its header of {length} bytes"
    if len(head) < 8 + length:
        return None
    try:
        header = _json_object(head[8 : 8 + length])
        end = max([int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"] or [0])
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        return f"{path} has a damaged header: {exc!r}"
    needed = 8 + length + end
    if size < needed:
        return f"{path} is truncated: {size} of {needed} bytes"
    if size > needed:
        return f"{path} is damaged: {size} bytes, but its header describes {needed}"
    return None


def _quantization_problems(model_format: str, config: Mapping[str, Any], files: Mapping[str, int]) -> list[str]:
    """What config.json says about quantization against the declared format; `safetensors` accepts every scheme."""
    if model_format == "safetensors":
        return []
    text = config.get("text_config")
    quantization = config.get("quantization_config") or (
        text.get("quantization_config") if isinstance(text, Mapping) else None
    )
    if not isinstance(quantization, Mapping):
        if any(name in files for name in QUANTIZATION_FILES):
            return []
        return [f"format is {model_format}, but config.json has no quantization_config: the weights are not quantized"]
    method = str(quantization.get("quant_method", "")).lower()
    if not method or model_format in method or method in QUANTIZATION_CONTAINERS:
        return []
    return [f"format is {model_format}, but config.json says quant_method {method}"]


def _json_object(data: bytes) -> dict[str, Any]:
    value = json.loads(data.decode("utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 (callers treat all damage alike)
    return value
