# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open WebUI's settings: what is ours becomes what it is to be, and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.webui_settings import (
    BACKGROUND_TASKS,
    CONFIGS,
    CONNECTED,
    EMBEDDING,
    EMBEDDING_KEY,
    KEYS,
    MAKERS_DEFAULT,
    METADATA,
    TOOLS_CONTEXT,
    URLS,
    WHOLE_DOCUMENTS,
    Connection,
    SettingsError,
    connections_for,
    plan,
    takes_tools,
)

# What version 0.12.4 exports after its first start, as far as it is ours, and two settings that are not.
FRESH: dict[str, Any] = {
    CONNECTED: True,
    URLS: [MAKERS_DEFAULT],
    KEYS: [""],
    CONFIGS: {},
    "ollama.enable": True,
    "rag.embedding_engine": "",
    "rag.embedding_model": "sentence-transformers/all-MiniLM-L6-v2",
    "rag.openai.api_base_url": MAKERS_DEFAULT,
    EMBEDDING_KEY: "",
    WHOLE_DOCUMENTS: False,
    "ui.enable_signup": True,
    "ui.enable_community_sharing": True,
    "ui.default_locale": "",
    METADATA: {},
    "task.model.default": "",
    "task.model.external": "",
    **dict.fromkeys(BACKGROUND_TASKS, True),
    "webui.url": "https://theirs.example.org",
}
CHAT = Connection("http://127.0.0.1:8000/v1", key="secret-of-chat")
SMALL = Connection("http://127.0.0.1:8001/v1", key="secret-of-small")
NOTES = Connection("http://127.0.0.1:8002/v1", task="embed", model="notes", key="secret-of-notes")
THEIRS = "https://api.example.org/v1"


def after(current: dict[str, Any], *args: Any, **named: Any) -> dict[str, Any]:
    return {**current, **plan(current, *args, **named).values}


def test_a_fresh_page_gets_what_is_ours_and_keeps_the_rest() -> None:
    made = after(FRESH, [CHAT, NOTES], task_model="small")
    assert (made[URLS], made[KEYS], made[CONFIGS]) == ([CHAT.url], [CHAT.key], {})
    assert [made[name] for name in EMBEDDING] == ["openai", "notes", NOTES.url, NOTES.key]
    assert made[WHOLE_DOCUMENTS] is False
    assert (made["ui.enable_signup"], made["ollama.enable"]) == (False, False)
    assert (made["task.model.default"], made["task.model.external"]) == ("small", "small")
    assert made[METADATA] == {"capabilities": {"builtin_tools": False}}
    for name in ("ui.default_locale", "webui.url"):
        assert made[name] == FRESH[name]


@pytest.mark.parametrize(
    "connections", [[], [CHAT], [CHAT, SMALL, NOTES], [NOTES]], ids=["none", "one", "three", "embed"]
)
def test_the_second_plan_is_empty(connections: list[Connection]) -> None:
    owned = [connection.url for connection in connections]
    assert plan(after(FRESH, connections), connections, owned).changes == []


def test_no_connection_is_none() -> None:
    made = after(FRESH, [])
    assert (made[CONNECTED], made[URLS], made[KEYS]) == (False, [], [])


def test_what_people_connected_stays_with_its_key_and_its_configuration() -> None:
    current = {
        **FRESH,
        URLS: [THEIRS, CHAT.url, SMALL.url],
        KEYS: ["their-key", "old-key"],
        CONFIGS: {"0": {"prefix_id": "theirs"}, "1": {"tags": ["ours"]}, "2": {"enable": False}},
    }
    made = after(current, [CHAT], owned=[CHAT.url, SMALL.url])
    assert made[URLS] == [CHAT.url, THEIRS]
    assert made[KEYS] == [CHAT.key, "their-key"]
    assert made[CONFIGS] == {"0": {"tags": ["ours"]}, "1": {"prefix_id": "theirs"}}


def test_a_moved_port_replaces_the_old_address() -> None:
    current = after(FRESH, [CHAT])
    moved = Connection("http://127.0.0.1:9000/v1", key=CHAT.key)
    made = plan(current, [moved], owned=[CHAT.url])
    assert made.values == {URLS: [moved.url]}


def test_people_s_own_openai_account_is_not_the_makers_default() -> None:
    assert after({**FRESH, KEYS: ["sk-theirs"]}, [CHAT])[URLS] == [CHAT.url, MAKERS_DEFAULT]


def test_without_an_embedding_engine_documents_go_in_whole() -> None:
    made = after(after(FRESH, [CHAT, NOTES]), [CHAT])
    assert (made["rag.embedding_engine"], made[WHOLE_DOCUMENTS]) == ("openai", True)


def test_tools_are_offered_when_every_connection_takes_them() -> None:
    able = Connection("http://127.0.0.1:8003/v1", takes_tools=True)
    theirs = {**FRESH, METADATA: {"capabilities": {"vision": False}, "tags": []}}
    offered = {"capabilities": {"vision": False, "builtin_tools": True}, "tags": []}
    assert after(theirs, [able])[METADATA] == offered
    assert after(theirs, [able, CHAT])[METADATA]["capabilities"]["builtin_tools"] is False
    assert theirs[METADATA] == {"capabilities": {"vision": False}, "tags": []}


def test_no_text_holds_a_key() -> None:
    made = plan({**FRESH, KEYS: ["old-secret"]}, [CHAT, NOTES], more={"ui.default_locale": "de-DE"})
    texts = f"{made} {made.changes} {[CHAT, NOTES]}"
    assert "secret" not in texts.replace("(hidden)", "")
    shown = {change.name: (change.before, change.after) for change in made.changes}
    assert shown[KEYS][1] == f"{CHAT.url}: (hidden), {MAKERS_DEFAULT}: (hidden)"
    assert shown[EMBEDDING_KEY] == ('""', "(hidden)")
    assert shown["ui.default_locale"] == ('""', '"de-DE"')


@pytest.mark.parametrize(
    ("current", "more", "words"),
    [
        pytest.param({"version": 0, "openai": {}}, {}, [URLS, "0.12"], id="older-shape"),
        pytest.param(FRESH, {"ui.default_local": "de"}, ["ui.default_local", "ui.default_locale"], id="unknown"),
        pytest.param(FRESH, {KEYS: ["x"]}, [KEYS, "leave it out"], id="ours"),
    ],
)
def test_what_cannot_be_managed_is_refused(current: dict[str, Any], more: dict[str, Any], words: list[str]) -> None:
    before = copy.deepcopy(current)
    with pytest.raises(SettingsError) as caught:
        plan(current, [CHAT], more=more)
    for word in words:
        assert word in str(caught.value)
    assert current == before


@pytest.mark.parametrize(
    ("engine", "flags", "context", "able"),
    [
        ("vllm", {"enable-auto-tool-choice": True, "tool-call-parser": "hermes"}, None, True),
        ("vllm", {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}, TOOLS_CONTEXT, True),
        ("vllm", {"enable-auto-tool-choice": True, "tool-call-parser": "hermes"}, TOOLS_CONTEXT - 1, False),
        ("vllm", {"tool-call-parser": "hermes"}, None, False),
        ("vllm", {}, None, False),
        ("llama_cpp", {"jinja": True}, 32768, True),
        ("llama_cpp", {"jinja": True}, 4096, False),
        ("llama_cpp", {}, 32768, True),
        ("llama_cpp", {"jinja": False}, 32768, False),
        ("ollama", {"jinja": True}, 32768, False),
    ],
)
def test_who_takes_tools(engine: str, flags: dict[str, Any], context: int | None, able: bool) -> None:
    assert takes_tools(engine, flags, context) is able


def test_connections_of_instances_and_of_others() -> None:
    instance = {"name": "chat", "engine": "llama_cpp", "port": 8000, "flags": {}, "context": 4096, "task": "chat"}
    theirs = {"url": f"{THEIRS}/", "key_file": "/etc/key", "takes_tools": True}
    made = connections_for([instance], [theirs], "/secrets", [{"name": "far", "host": "pod1", "port": 18000}])
    assert made == [
        {
            "url": CHAT.url,
            "key_file": "/secrets/chat.env",
            "task": "chat",
            "model": "chat",
            "takes_tools": False,
            "prefix": "",
            "prefixed": False,
        },
        {
            "url": "http://127.0.0.1:18000/v1",
            "key_file": "/secrets/tunnel-far.env",
            "task": "chat",
            "model": "",
            "takes_tools": False,
            "prefix": "far",
            "prefixed": False,
        },
        {
            "url": THEIRS,
            "key_file": "/etc/key",
            "task": "chat",
            "model": "",
            "takes_tools": True,
            "prefix": "",
            "prefixed": False,
        },
    ]


def test_of_models_with_one_name_the_later_ones_are_prefixed() -> None:
    here = {"engine": "llama_cpp", "flags": {}, "context": 4096}
    instances = [{"name": "chat", "port": 8000, "task": "chat"}, {"name": "notes", "port": 8001, "task": "embed"}]
    wanted = {"near": "notes", "far": "chat", "one": "big", "two": "big"}
    tunnels = [
        {"name": name, "host": "pod", "instance": instance, "port": 18000 + number}
        for number, (name, instance) in enumerate(wanted.items())
    ]
    made = connections_for([{**here, **instance} for instance in instances], [], "/secrets", tunnels)
    assert [one["prefix"] for one in made if one["prefixed"]] == ["far", "two"], "an engine that embeds shows no model"


def test_a_prefix_comes_and_goes_and_people_s_own_stays() -> None:
    far = Connection("http://127.0.0.1:18000/v1", prefix="far", prefixed=True)
    plain = Connection(far.url, prefix="far")
    made = after({**FRESH, URLS: [far.url], CONFIGS: {"0": {"tags": ["x"]}}}, [CHAT, far])
    assert made[CONFIGS] == {"1": {"tags": ["x"], "prefix_id": "far"}}
    assert plan(made, [CHAT, far], [CHAT.url, far.url]).changes == []
    assert after(made, [CHAT, plain], [CHAT.url, far.url])[CONFIGS] == {"1": {"tags": ["x"]}}
    theirs = {**made, CONFIGS: {"1": {"prefix_id": "theirs"}}}
    assert after(theirs, [CHAT, plain], [CHAT.url, far.url])[CONFIGS] == theirs[CONFIGS]
