# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of Open WebUI's settings are ours, what they are to be, and what has to change for that. (pure)

Open WebUI 0.12 keeps its settings as one flat mapping of dotted names. Ours are few; whatever people set on the page
beside them stays. A key of an engine is in no text that is made here.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CHAT, EMBED = "chat", "embed"

URLS, KEYS, CONFIGS = "openai.api_base_urls", "openai.api_keys", "openai.api_configs"
CONNECTED = "openai.enable"
METADATA = "models.default_metadata"
WHOLE_DOCUMENTS = "rag.bypass_embedding_and_retrieval"
EMBEDDING_KEY = "rag.openai.api_key"
EMBEDDING = ("rag.embedding_engine", "rag.embedding_model", "rag.openai.api_base_url", EMBEDDING_KEY)
"""Set together over an address of their own, since the page then loads its embedding anew."""

BACKGROUND_TASKS = (
    "task.title.enable",
    "task.tags.enable",
    "task.follow_up.enable",
    "task.query.search.enable",
    "task.query.retrieval.enable",
)
TASK_MODELS = ("task.model.default", "task.model.external")

MAKERS_DEFAULT = "https://api.openai.com/v1"
"""What a fresh page is connected with, without a key."""

TOOLS_CONTEXT = 16384
"""Tokens of context below which no tools are offered: version 0.12.4 describes 36 of them in 26 KB of each request,
about 6000 tokens."""

_SECRET_WORDS = ("api_key", "api_keys", "password", "secret", "token")


class SettingsError(ValueError):
    """Settings that cannot be managed; one plain sentence for each problem."""


@dataclass(frozen=True)
class Connection:
    """An OpenAI-compatible API. `url` ends in /v1; `model` is needed for task embed only.

    `prefix` and a dot stand before its models' names where it is `prefixed`: of two models with one name the page
    shows the first one only.
    """

    url: str
    task: str = CHAT
    model: str = ""
    takes_tools: bool = False
    prefix: str = ""
    prefixed: bool = False
    key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Change:
    """One setting: its name, and what it is and will be as text in which secrets are hidden."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Plan:
    """What has to change: in words, and the new values by name, secrets included."""

    changes: list[Change]
    values: dict[str, object] = field(repr=False)


def takes_tools(engine: str, flags: Mapping[str, object], context: int | None) -> bool:
    """Whether an instance can be offered tools: its engine was told how to parse calls and has room for them.

    vLLM answers 400 to a request with tools when it was started without a parser; llama.cpp parses with the model's own
    template, --jinja, which is always given unless a flag takes it back. `context` is in tokens, None where the engine
    decides.
    """
    if context is not None and context < TOOLS_CONTEXT:
        return False
    given = {str(name).replace("_", "-"): value for name, value in flags.items()}
    if engine == "vllm":
        return bool(given.get("enable-auto-tool-choice")) and bool(given.get("tool-call-parser"))
    return engine == "llama_cpp" and given.get("jinja", True) is not False


def connections_for(
    instances: Iterable[Mapping[str, object]],
    more: Iterable[Mapping[str, object]],
    secrets_dir: str,
    tunnels: Iterable[Mapping[str, object]] = (),
) -> list[dict[str, object]]:
    """The connections of a page: one for each present instance of its host, then `tunnels`, then `more`.

    `instances` have every key of the schema (`placement.instances_for`), `tunnels` are rig_tunnels. An entry of `more`
    has `url` and may have `key_file`, `takes_tools`. Each result has url, key_file ('' for none), task, model,
    takes_tools, prefix and prefixed: a tunnel's models get its name as prefix where an earlier connection has a model
    of that name.
    """
    found: list[dict[str, object]] = []
    for instance in instances:
        flags, context = instance["flags"], instance["context"]
        found.append(
            {
                "url": f"http://127.0.0.1:{instance['port']}/v1",
                "key_file": f"{secrets_dir}/{instance['name']}.env",
                "task": instance["task"],
                "model": instance["name"],
                "takes_tools": takes_tools(
                    str(instance["engine"]),
                    flags if isinstance(flags, Mapping) else {},
                    context if isinstance(context, int) else None,
                ),
                "prefix": "",
                "prefixed": False,
            }
        )
    seen = {one["model"] for one in found if one["task"] == CHAT}
    forwards = []
    for tunnel in tunnels:
        forwards.append(
            {
                "url": f"http://127.0.0.1:{tunnel['port']}/v1",
                "key_file": f"{secrets_dir}/tunnel-{tunnel['name']}.env",
                "prefix": tunnel["name"],
                "prefixed": tunnel.get("instance") in seen,
            }
        )
        seen.add(tunnel.get("instance"))
    return found + [
        {
            "url": str(entry["url"]).rstrip("/"),
            "key_file": str(entry.get("key_file") or ""),
            "task": CHAT,
            "model": "",
            "takes_tools": bool(entry.get("takes_tools")),
            "prefix": str(entry.get("prefix") or ""),
            "prefixed": bool(entry.get("prefixed")),
        }
        for entry in [*forwards, *more]
    ]


def plan(
    current: Mapping[str, object],
    connections: Sequence[Connection],
    owned: Iterable[str] = (),
    task_model: str = "",
    more: Mapping[str, object] | None = None,
) -> Plan:
    """What has to change on a page whose settings are `current`.

    `owned`: the URLs that an earlier run connected; those that are wanted no more are taken out, all others stay.
    `task_model`: the model that writes titles and the like, '' for none. `more`: further settings by their names.
    Raises SettingsError for a page whose settings are of another shape, and for names in `more` that it does not know.
    """
    _check(current, more or {})
    chats = [connection for connection in connections if connection.task == CHAT]
    wanted: dict[str, object] = {
        **_connected(current, chats, owned),
        **_documents(next((connection for connection in connections if connection.task == EMBED), None)),
        **dict.fromkeys(BACKGROUND_TASKS, bool(task_model)),
        "ui.enable_signup": False,
        "ui.enable_community_sharing": False,
        "ollama.enable": False,
        METADATA: _with_tools(current.get(METADATA), bool(chats) and all(chat.takes_tools for chat in chats)),
    }
    if task_model:
        wanted.update(dict.fromkeys(TASK_MODELS, task_model))
    wanted.update(more or {})
    values = {name: value for name, value in wanted.items() if current.get(name) != value}
    changes = [
        Change(name, _shown(name, current.get(name), current), _shown(name, value, wanted))
        for name, value in sorted(values.items())
    ]
    return Plan(changes, values)


def _check(current: Mapping[str, object], more: Mapping[str, object]) -> None:
    if not isinstance(current.get(URLS), list):
        raise SettingsError(
            f"the page's settings have no list {URLS}, so it is not Open WebUI 0.12 or keeps its settings otherwise"
        )
    problems = []
    for name in more:
        if name in {URLS, KEYS, CONFIGS, CONNECTED, *EMBEDDING}:
            problems.append(f"{name} is set from the instances and connections of the inventory; leave it out")
        elif name not in current:
            close = difflib.get_close_matches(name, list(current), n=1)
            problems.append(f"{name}: the page has no such setting." + (f" Did you mean {close[0]}?" if close else ""))
    if problems:
        raise SettingsError("; ".join(problems))


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _mapping(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, Mapping) else {}


def _connected(current: Mapping[str, object], chats: Sequence[Connection], owned: Iterable[str]) -> dict[str, object]:
    """Ours in our order, then those of people; each keeps what was configured for it."""
    urls = [str(url) for url in _list(current.get(URLS))]
    keys = [str(key or "") for key in _list(current.get(KEYS))]
    keys += [""] * (len(urls) - len(keys))
    configs = _mapping(current.get(CONFIGS))
    # The page numbers them; older ones are found by their URL.
    known = {url: configs.get(str(number), configs.get(url)) for number, url in enumerate(urls)}
    ours = {chat.url for chat in chats}
    gone = ours | set(owned)
    rows = [(chat.url, chat.key, _with_prefix(known.get(chat.url), chat)) for chat in chats]
    rows += [
        (url, key, known[url])
        for url, key in zip(urls, keys, strict=False)
        if url.rstrip("/") not in gone and not (url == MAKERS_DEFAULT and not key)
    ]
    return {
        CONNECTED: bool(rows),
        URLS: [url for url, _key, _config in rows],
        KEYS: [key for _url, key, _config in rows],
        CONFIGS: {str(number): config for number, (_url, _key, config) in enumerate(rows) if config is not None},
    }


def _with_prefix(config: object, chat: Connection) -> object:
    """The configuration with our prefix, or without it; a prefix that people chose stays where we need none."""
    if chat.prefixed:
        return {**_mapping(config), "prefix_id": chat.prefix}
    if chat.prefix and _mapping(config).get("prefix_id") == chat.prefix:
        return {key: value for key, value in _mapping(config).items() if key != "prefix_id"}
    return config


def _documents(embedding: Connection | None) -> dict[str, object]:
    """Documents are embedded by an engine; without one they go into the question whole."""
    if embedding is None:
        return {EMBEDDING[0]: "openai", WHOLE_DOCUMENTS: True}
    values = ("openai", embedding.model, embedding.url, embedding.key)
    return {**dict(zip(EMBEDDING, values, strict=True)), WHOLE_DOCUMENTS: False}


def _with_tools(metadata: object, offered: bool) -> dict[str, object]:
    changed = copy.deepcopy(_mapping(metadata))
    changed["capabilities"] = {**_mapping(changed.get("capabilities")), "builtin_tools": offered}
    return changed


def _shown(name: str, value: object, beside: Mapping[str, object]) -> str:
    """The value as text; of keys only whether there is one, for the URLs `beside` them."""
    if name == KEYS:
        pairs = zip(_list(beside.get(URLS)), _list(value), strict=False)
        return ", ".join(f"{url}: {'(hidden)' if key else 'none'}" for url, key in pairs)
    if any(word in name.rpartition(".")[2] for word in _SECRET_WORDS) and value:
        return "(hidden)"
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
