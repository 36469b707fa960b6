# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines' HTTP side, against a small server that answers as the engines were seen to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.engine_api import (
    EngineError,
    ask,
    embed,
    healthy,
    listed_models,
    parse_counters,
    read_key,
    token_counters,
)

CHAT = {
    "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "Paris."}}],
    "usage": {"completion_tokens": 8, "prompt_tokens": 42, "prompt_tokens_details": {"cached_tokens": 3}},
}


class Handler(BaseHTTPRequestHandler):
    def _reply(self, status: int, value: Any) -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _route(self) -> None:
        routes = self.server.routes  # type: ignore[attr-defined]
        if self.path != "/health" and self.headers.get("Authorization") != "Bearer secret":
            self._reply(401, {"error": {"message": "Invalid API Key"}})
        else:
            self._reply(*routes.get(self.path, (404, "not here")))

    do_GET = do_POST = _route  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, tuple[int, Any]]]]:
    routes: dict[str, tuple[int, Any]] = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.routes = routes  # type: ignore[attr-defined]
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", routes
        http.shutdown()


def test_health(server: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, routes = server
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    routes["/health"] = (503, {"error": {"message": "Loading model"}})
    assert healthy(f"{url}/health") == (False, "status 503 Loading model")
    routes["/health"] = (200, "")
    assert healthy(f"{url}/health") == (True, "healthy")


def test_nothing_listens() -> None:
    assert healthy("http://127.0.0.1:1/health") == (False, "no answer yet")


def test_models_and_the_key(server: tuple[str, dict[str, Any]]) -> None:
    url, routes = server
    routes["/v1/models"] = (200, {"data": [{"id": "chat"}, {"id": "embed"}]})
    assert listed_models(f"{url}/v1", "secret") == ["chat", "embed"]
    with pytest.raises(EngineError, match="status 401: Invalid API Key"):
        listed_models(f"{url}/v1", "wrong")


def test_an_answer_carries_the_engines_own_counts(server: tuple[str, dict[str, Any]]) -> None:
    url, routes = server
    routes["/v1/chat/completions"] = (200, CHAT)
    answer = ask(f"{url}/v1", "secret", "chat", "?", 16, 5)
    assert (answer.text, answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == ("Paris.", 42, 3, 8)


@pytest.mark.parametrize("reply", ["no json", [1], {"choices": []}, {"choices": [{}], "usage": {}}])
def test_an_answer_in_another_form_is_an_error(server: tuple[str, dict[str, Any]], reply: object) -> None:
    url, routes = server
    routes["/v1/chat/completions"] = (200, reply)
    with pytest.raises(EngineError, match="chat/completions"):
        ask(f"{url}/v1", "secret", "chat", "?", 16, 5)


def test_counters_are_summed_over_labels() -> None:
    text = (
        "# HELP vllm:generation_tokens_total x\n"
        'vllm:generation_tokens_total{engine="0",model_name="a"} 5.0\n'
        'vllm:generation_tokens_total{engine="1",model_name="a"} 7\n'
        "vllm:prompt_tokens_total 1e3\nother 3\n"
    )
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    assert parse_counters(text, names) == {names[0]: 1000.0, names[1]: 12.0}


def test_a_missing_counter_is_named(server: tuple[str, dict[str, Any]]) -> None:
    url, routes = server
    routes["/metrics"] = (200, "llamacpp:prompt_tokens_total 3\n")
    with pytest.raises(EngineError, match="no counter llamacpp:tokens_predicted_total"):
        token_counters(f"{url}/metrics", "secret", "llama_cpp")
    routes["/metrics"] = (200, "llamacpp:prompt_tokens_total 3\nllamacpp:tokens_predicted_total 4\n")
    assert token_counters(f"{url}/metrics", "secret", "llama_cpp") == (3.0, 4.0)


def test_the_key_of_a_secrets_file(tmp_path: Path) -> None:
    secrets = tmp_path / "chat.env"
    secrets.write_text("OTHER=1\nLLAMA_API_KEY=abc=def\n")
    assert read_key(str(secrets)) == "abc=def"
    assert not read_key("")
    secrets.write_text("OTHER=1\n")
    with pytest.raises(EngineError, match="ends in API_KEY"):
        read_key(str(secrets))
    with pytest.raises(EngineError, match="cannot read the secrets file"):
        read_key(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ([{"index": 1, "embedding": [0, 1]}, {"index": 0, "embedding": [1, 0]}], ""),
        ([{"index": 0, "embedding": [1, 0]}], "1 vectors of [2] numbers for 2 texts"),
        ([{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 0]}], "2 vectors of [1, 2] numbers"),
        ([{"index": 0, "embedding": []}, {"index": 1, "embedding": []}], "2 vectors of [0] numbers"),
        ([{"index": 0}], "lacks 'embedding'"),
    ],
)
def test_embeddings(server: tuple[str, dict[str, tuple[int, Any]]], data: list[Any], problem: str) -> None:
    base, routes = server
    routes["/v1/embeddings"] = (200, {"data": data, "usage": {"prompt_tokens": 7}})
    if problem:
        with pytest.raises(EngineError, match=re.escape(problem)):
            embed(f"{base}/v1", "secret", "m", ["a", "b"], 5)
    else:
        got = embed(f"{base}/v1", "secret", "m", ["a", "b"], 5)
        assert (got.vectors, got.prompt_tokens) == ([[1.0, 0.0], [0.0, 1.0]], 7)
