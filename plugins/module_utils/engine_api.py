# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines' HTTP side: health, the model list, one question, the token counters. (outside)

Engines answer on loopback, so no proxy of the environment is ever used: a proxy would be asked for 127.0.0.1.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

# Counters that rise by the tokens of each finished request, read in the engines' own /metrics
# (llama.cpp's server; vLLM 0.32.0).
TOKEN_COUNTERS = {
    "llama_cpp": ("llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total"),
    "vllm": ("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
}


class EngineError(Exception):
    """The engine did not answer as its API promises; the text says what was asked and what came."""


@dataclass(frozen=True)
class Answer:
    """One chat answer and the figures the engine and the clock give for it."""

    text: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float


def read_key(secrets_file: str) -> str:
    """Return the value of the variable ending in API_KEY in a KEY=VALUE file; empty for no file name.

    Raises EngineError when the file cannot be read or holds no key.
    """
    if not secrets_file:
        return ""
    try:
        text = Path(secrets_file).read_text(encoding="utf-8")
    except OSError as error:
        raise EngineError(f"cannot read the secrets file {secrets_file}: {error.strerror}") from error
    for line in text.splitlines():
        name, _sep, value = line.partition("=")
        if name.strip().endswith("API_KEY") and not name.lstrip().startswith("#"):
            return value.strip()
    raise EngineError(f"the secrets file {secrets_file} holds no variable that ends in API_KEY")


def request(url: str, key: str = "", body: dict[str, Any] | None = None, timeout_s: float = 10.0) -> tuple[int, str]:
    """Send one request; return (status, text). Raises EngineError when nothing answers within `timeout_s`."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        data = json.dumps(body).encode()
    ask = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310  the scheme is our own service's
    try:
        with _OPENER.open(ask, timeout=timeout_s) as reply:
            return int(reply.status), reply.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(f"{url}: {getattr(error, 'reason', error)}") from error


def healthy(health_url: str, timeout_s: float = 3.0) -> tuple[bool, str]:
    """Ask the health URL once; return (answered 200, what was seen in words)."""
    try:
        status, text = request(health_url, timeout_s=timeout_s)
    except EngineError as error:
        return False, "no answer yet" if "refused" in str(error) else str(error)
    if status == 200:
        return True, "healthy"
    return False, f"status {status} {_message(text)}".strip()


def _message(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text.strip()[:120]
    error = value.get("error", value) if isinstance(value, dict) else value
    return str(error.get("message", error) if isinstance(error, dict) else error)[:160]


def _json(url: str, key: str, body: dict[str, Any] | None = None, timeout_s: float = 10.0) -> dict[str, Any]:
    status, text = request(url, key, body, timeout_s)
    if status != 200:
        raise EngineError(f"{url}: status {status}: {_message(text)}")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EngineError(f"{url}: the answer is not JSON: {text[:120]}") from error
    if not isinstance(value, dict):
        raise EngineError(f"{url}: the answer is not a JSON object: {text[:120]}")
    return value


def listed_models(base_url: str, key: str) -> list[str]:
    """Return the model names of GET /v1/models; `base_url` ends in /v1."""
    listed = _json(f"{base_url}/models", key).get("data", [])
    return [str(entry.get("id")) for entry in listed if isinstance(entry, dict)]


def ask(base_url: str, key: str, model: str, question: str, max_tokens: int, timeout_s: float) -> Answer:
    """Ask one question over /v1/chat/completions with temperature 0; tokens are the engine's own usage figures."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    began = time.monotonic()
    reply = _json(f"{base_url}/chat/completions", key, body, timeout_s)
    seconds = time.monotonic() - began
    try:
        choice, usage = reply["choices"][0], reply["usage"]
        details = usage.get("prompt_tokens_details") or {}
        return Answer(
            text=str(choice["message"]["content"] or ""),
            finish_reason=str(choice["finish_reason"]),
            prompt_tokens=int(usage["prompt_tokens"]),
            cached_tokens=int(details.get("cached_tokens") or 0),
            completion_tokens=int(usage["completion_tokens"]),
            seconds=seconds,
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineError(f"{base_url}/chat/completions: the answer lacks {error}: {str(reply)[:160]}") from error


@dataclass(frozen=True)
class Embeddings:
    """One vector for each text, all of one length; tokens are the engine's own usage figure."""

    vectors: list[list[float]]
    prompt_tokens: int
    seconds: float


def embed(base_url: str, key: str, model: str, texts: list[str], timeout_s: float) -> Embeddings:
    """Embed the texts over /v1/embeddings. Raises EngineError, also for vectors that are none or of unlike lengths."""
    url = f"{base_url}/embeddings"
    began = time.monotonic()
    reply = _json(url, key, {"model": model, "input": texts}, timeout_s)
    seconds = time.monotonic() - began
    try:
        rows = sorted(reply["data"], key=lambda row: int(row["index"]))
        vectors = [[float(number) for number in row["embedding"]] for row in rows]
        tokens = int(reply["usage"]["prompt_tokens"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineError(f"{url}: the answer lacks {error}: {str(reply)[:160]}") from error
    lengths = sorted({len(vector) for vector in vectors})
    if len(vectors) != len(texts) or len(lengths) != 1 or not lengths[0]:
        raise EngineError(f"{url}: {len(vectors)} vectors of {lengths} numbers for {len(texts)} texts")
    return Embeddings(vectors, tokens, seconds)


def parse_counters(text: str, names: tuple[str, ...]) -> dict[str, float]:
    """Return {name: sum over all label sets} from a Prometheus text; a name that is absent is left out."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+([-+0-9.eE]+|NaN)$", line.strip())
        if match and match[1] in names and match[2] != "NaN":
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def token_counters(metrics_url: str, key: str, engine: str) -> tuple[float, float]:
    """Return the engine's (prompt, generated) token counters. Raises EngineError when one is not there."""
    names = TOKEN_COUNTERS[engine]
    status, text = request(metrics_url, key)
    if status != 200:
        raise EngineError(f"{metrics_url}: status {status}: {_message(text)}")
    found = parse_counters(text, names)
    missing = [name for name in names if name not in found]
    if missing:
        raise EngineError(f"{metrics_url}: no counter {' and no '.join(missing)}")
    return found[names[0]], found[names[1]]
