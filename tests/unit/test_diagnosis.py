# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one log line that explains an end; the specimens are captured from real engines."""

from __future__ import annotations

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.diagnosis import last_error_line

# xllamacpp 2026.10.11549 with a GGUF cut in the middle, 2026-11-21.
LLAMA_TRUNCATED = [
    "0.00.006.993 I srv    load_model: loading model 'trunc.gguf'",
    "0.00.023.425 E llama_model_load: error loading model: tensor 'blk.16.ffn_down.weight' data is not within bounds",
    "0.00.023.438 E llama_model_load_from_file_impl: failed to load model",
    "0.00.035.791 E srv    load_model: failed to load model, 'trunc.gguf'",
    "0.00.036.135 E srv          init: exiting due to model loading error",
    "llama_server: error: llama.cpp did not start with trunc.gguf: Failed to init server",
]
# The same program on a port that is taken.
LLAMA_PORT = [
    "0.00.003.211 I srv    operator(): operator(): cleaning up before exit...",
    "0.00.003.287 E srv          init: exiting due to HTTP server error",
    "llama_server: error: llama.cpp did not start with m.gguf: Failed to init server, please check the input params.",
]
# vLLM 0.32.0 asked for a context above the model's: a Python error with advice around it.
VLLM = [
    "INFO 11-21 10:00:00 [api_server.py:1] vLLM API server version 0.32.0",
    "ERROR 11-21 10:00:09 [core.py:7] EngineCore failed to start.",
    "Traceback (most recent call last):",
    '  File "arg_utils.py", line 1, in create_engine_config',
    "\x1b[1;31mpydantic_core.ValidationError: 1 error for ModelConfig: max_model_len (9999) too large\x1b[0m",
    "INFO the process ends",
]
# The journal of a unit, systemd 252 and 249.
SYSTEMD = [
    "Starting gpurig-chat.service - llama.cpp serving smollm2...",
    "Started gpurig-chat.service - llama.cpp serving smollm2.",
    "gpurig exec: chat: secrets file /run/credentials/gpurig-chat.service/secrets: Permission denied.",
    "gpurig-chat.service: Main process exited, code=exited, status=78/CONFIG",
    "gpurig-chat.service: Failed with result 'exit-code'.",
    "Failed to start gpurig-chat.service - llama.cpp serving smollm2.",
    "Failed to start llama.cpp serving smollm2.",
]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        pytest.param(LLAMA_TRUNCATED, "blk.16.ffn_down.weight", id="llama-truncated-model"),
        pytest.param(LLAMA_PORT, "exiting due to HTTP server error", id="llama-port-taken"),
        pytest.param(VLLM, "max_model_len (9999) too large", id="vllm-exception-without-colours"),
        pytest.param(["gpurig exec: chat: refused: secrets file missing"], "secrets file missing", id="host-tool"),
        pytest.param(SYSTEMD, "Permission denied", id="systemd-has-the-last-word"),
        pytest.param(SYSTEMD[3:5], "Failed with result", id="systemd-has-the-only-word"),
        pytest.param(["loading", "ready"], "ready", id="no-error-gives-the-last-line"),
    ],
)
def test_the_telling_line_is_chosen(log: list[str], expected: str) -> None:
    line = last_error_line(log)
    assert expected in line
    assert "\x1b" not in line


def test_an_empty_log_gives_an_empty_line() -> None:
    assert not last_error_line([])
    assert not last_error_line(["", "   "])
