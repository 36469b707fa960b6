# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments of llama.cpp's server."""

from __future__ import annotations

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.llama_args import llama_argv

INSTANCE = {"name": "chat", "port": 8000, "context": 4096, "parallel": 2, "flags": {}}


def value_of(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_context_is_per_request_and_llama_counts_all_slots() -> None:
    argv = llama_argv(INSTANCE, "/models/m.gguf")
    assert value_of(argv, "--ctx-size") == "8192"
    assert value_of(argv, "--parallel") == "2"
    assert value_of(argv, "--host") == "127.0.0.1"
    assert value_of(argv, "--alias") == "chat"
    assert value_of(argv, "--model") == "/models/m.gguf"


def test_without_context_the_model_decides() -> None:
    assert value_of(llama_argv({"name": "chat", "port": 1}, "m"), "--ctx-size") == "0"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param({"threads": 3}, ["--threads", "3"], id="value"),
        pytest.param({"n_predict": -1}, ["--n-predict", "-1"], id="underscore"),
        pytest.param({"webui": False}, ["--no-webui"], id="false"),
        pytest.param({"embeddings": True}, ["--embeddings"], id="true"),
        pytest.param({"lora": ["a", "b"]}, ["--lora", "a", "--lora", "b"], id="list-repeats"),
    ],
)
def test_flags(flags: dict[str, object], expected: list[str]) -> None:
    assert llama_argv({**INSTANCE, "flags": flags}, "m")[-len(expected) :] == expected


@pytest.mark.parametrize("flag", ["port", "--host", "ctx_size", "api_key"])
def test_a_flag_that_a_key_decides_is_refused(flag: str) -> None:
    with pytest.raises(ValueError, match="instance chat: the flag"):
        llama_argv({**INSTANCE, "flags": {flag: "x"}}, "m")
