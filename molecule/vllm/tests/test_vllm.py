# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the real vLLM says under systemd: exact text, token counts, a stream, a tool call; and how it is confined."""

from __future__ import annotations

import json
import re

from ansible_collections.gpurig.llm.molecule.shared.rig import Rig
from ansible_collections.gpurig.llm.tests.tiny_model import make
from testinfra.host import Host

PORT = 8000
MESSAGES = [{"role": "user", "content": "Hello?"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": make.CALL_NAME, "parameters": WEATHER}}


def test_exact_text_and_token_counts(rig: Rig) -> None:
    """The answer is fixed, and so are its tokens and the prompt's."""
    status, text = rig.ask(PORT, "/v1/chat/completions", rig.key("chat"), model="chat", messages=MESSAGES)
    assert status == 200, text
    reply = json.loads(text)
    assert reply["choices"][0]["message"]["content"] == make.ANSWER
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == make.answer_tokens()
    assert reply["usage"]["prompt_tokens"] == make.prompt_tokens(MESSAGES[0]["content"])


def test_a_stream_adds_up_to_the_answer(rig: Rig) -> None:
    """Piece by piece, the end marked, the usage last."""
    options = {"include_usage": True}
    body = {"model": "chat", "messages": MESSAGES, "stream": True, "stream_options": options}
    status, text = rig.ask(PORT, "/v1/chat/completions", rig.key("chat"), **body)
    assert status == 200, text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join(pieces) == make.ANSWER
    assert chunks[-1]["usage"]["completion_tokens"] == make.answer_tokens()


def test_a_request_with_tools_gives_a_call(rig: Rig) -> None:
    """By the parser that the inventory names for this model."""
    body = {"model": "chat", "messages": MESSAGES, "tools": [TOOL]}
    status, text = rig.ask(PORT, "/v1/chat/completions", rig.key("chat"), **body)
    assert status == 200, text
    choice = json.loads(text)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == (make.CALL_NAME, make.CALL_ARGUMENTS)


def test_embeddings_are_of_unit_length(rig: Rig) -> None:
    """And an embeddings instance does not chat."""
    key = rig.key("notes")
    status, text = rig.ask(8001, "/v1/embeddings", key, model="notes", input=["a", "b"])
    assert status == 200, text
    for row in json.loads(text)["data"]:
        assert len(row["embedding"]) == make.Shape().hidden
        assert abs(sum(number**2 for number in row["embedding"]) - 1) < 1e-3
    assert rig.ask(8001, "/v1/chat/completions", key, model="notes", messages=MESSAGES)[0] in {400, 404}


def test_the_log_has_no_complaint_about_our_settings(rig: Rig) -> None:
    """vLLM warns about variables that it does not know, and about options on their way out."""
    log = rig.host.check_output("%s logs chat --lines 2000", rig.tool)
    assert "Starting vLLM server" in log
    complaints = [line for line in log.splitlines() if re.search(r"Unknown vLLM environment|WARNING.*deprecated", line)]
    assert complaints == []
    assert "Hello?" not in log, "what people ask is in the log"


def test_the_configuration_is_all_that_the_process_shows(rig: Rig, host: Host) -> None:
    """One file, readable by all, with no secret; the key only in the process's own environment."""
    argv = host.check_output("tr '\\0' ' ' < /proc/%s/cmdline", str(rig.row("chat")["pid"]))
    path = argv.split("--config ")[1].strip()
    assert argv.strip().endswith(f"serve --config {path}")
    text = host.file(path).content_string
    assert 'host: "127.0.0.1"' in text
    assert rig.key("chat") not in text
    assert host.check_output("ls %s", f"{rig.paths['config']}/instances").count("chat-") == 1


def test_the_unit_is_confined(host: Host) -> None:
    """At most what llama.cpp's unit has open; compiling at run time and the cards' device files need the rest."""
    for unit in ("gpurig-chat.service", "gpurig-notes.service"):
        line = host.check_output("systemd-analyze security --no-pager %s | tail -n 1", unit)
        assert float(line.split(":")[1].split()[0]) <= 4.0, line
        assert host.check_output("systemctl show %s --property=MemoryDenyWriteExecute --value", unit) == "no"
        assert host.check_output("systemctl show %s --property=User --value", unit) == "gpurig"
