#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a running engine and prove that the answer is its own. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_answer
short_description: Ask a running engine and prove that the answer is its own
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Asks each question over the engine's real chat API and returns the answers with the engine's own token counts.
  - The proof that a text came from this engine is the engine's own token counter, which must rise by at least the
    completion tokens it reported.
options:
  name:
    description: Name of the instance, for messages.
    type: str
    required: true
  engine:
    description: Which engine it is; decides where the counters are.
    type: str
    choices: [llama_cpp, vllm]
    required: true
  base_url:
    description: Base URL of the OpenAI-compatible API, ending in C(/v1).
    type: str
    required: true
  metrics_url:
    description: URL of the engine's Prometheus metrics.
    type: str
    required: true
  model:
    description: Served model name.
    type: str
    required: true
  secrets_file:
    description: File that holds the API key, as a variable ending in C(API_KEY).
    type: path
  questions:
    description: What to ask, one request each.
    type: list
    elements: str
    required: true
  task:
    description:
      - What the instance is for. V(chat) asks the questions over C(/v1/chat/completions). V(embed) has them embedded
        over C(/v1/embeddings); the answers then say how long the vectors are, and the counter is that of the prompts.
    type: str
    choices: [chat, embed]
    default: chat
  max_tokens:
    description: Most tokens of one answer.
    type: int
    default: 128
  timeout_s:
    description: Longest time for one answer, in seconds.
    type: int
    default: 300
  rig:
    description: The facts of M(gpurig.llm.rig_facts), to return how long the service took to become ready.
    type: dict
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
    details: It asks in check mode too, since asking changes nothing.
  diff_mode:
    support: none
    details: It changes nothing.
  idempotent:
    support: full
    details: It never reports a change; the answers are those of a language model at temperature 0.
"""

EXAMPLES = r"""
- name: Ask the chat engine
  gpurig.llm.engine_answer:
    name: chat
    engine: llama_cpp
    base_url: http://127.0.0.1:8000/v1
    metrics_url: http://127.0.0.1:8000/metrics
    model: chat
    secrets_file: /etc/gpurig/secrets/chat.env
    questions:
      - What is the capital of France? Answer in one sentence.
"""

RETURN = r"""
answers:
  description: One entry per question.
  returned: success
  type: list
  elements: dict
  contains:
    question:
      description: The question.
      type: str
    text:
      description: The whole answer.
      type: str
    first_line:
      description: First non-empty line of the answer.
      type: str
    completion_tokens:
      description: Tokens of the answer, by the engine's own count.
      type: int
    prompt_tokens:
      description: Tokens of the question, by the engine's own count.
      type: int
    seconds:
      description: Wall time of the request.
      type: float
tokens_per_s:
  description: >-
    Completion tokens of all answers over the seconds they took, prompt processing included; of embeddings the prompts'
    tokens.
  returned: success
  type: float
ready_s:
  description: Seconds from the start of the service's process to its first healthy answer, as the start measured it.
  returned: when O(rig) is given and it was measured
  type: float
counter_rise:
  description: By how much the engine's counter of generated tokens rose, for embeddings that of the prompts' tokens.
  returned: success
  type: float
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.engine_api import (
    TOKEN_COUNTERS,
    EngineError,
    ask,
    embed,
    read_key,
    token_counters,
)
from ansible_collections.gpurig.llm.plugins.module_utils.services import read_ready_s, read_service

# The counter is written after the reply is sent; engines that do so were seen to take less than a second.
COUNTER_WAIT_S = 5.0


def rise_to(counter: tuple[str, str, str], which: int, before: float, reported: int) -> float:
    """Return by how much the engine's counter rose. Raises EngineError when it is less than the answers report."""
    deadline = time.monotonic() + COUNTER_WAIT_S
    while (rise := token_counters(*counter)[which] - before) < reported and time.monotonic() < deadline:
        time.sleep(0.1)
    if not reported or rise < reported:
        raise EngineError(
            f"the answers report {reported} {('prompt', 'completion')[which]} tokens, but the engine's own counter at "
            f"{counter[0]} rose by {rise:g}: another program answers on this port"
        )
    return rise


def embedded(params: dict) -> dict:
    """Return what the vectors are like and the counter's rise. Raises EngineError when the proof fails."""
    key = read_key(params["secrets_file"] or "")
    counter = (params["metrics_url"], key, params["engine"])
    before = token_counters(*counter)[0]
    got = embed(params["base_url"], key, params["model"], params["questions"], params["timeout_s"])
    rise = rise_to(counter, 0, before, got.prompt_tokens)
    if len(got.vectors) > 1 and all(vector == got.vectors[0] for vector in got.vectors):
        raise EngineError(f"different texts have the same vector: model {params['model']} is unfit for embeddings")
    line = f"{len(got.vectors)} vectors of {len(got.vectors[0])} numbers"
    answer = {
        "question": "",
        "text": line,
        "first_line": line,
        "completion_tokens": 0,
        "prompt_tokens": got.prompt_tokens,
        "seconds": round(got.seconds, 3),
    }
    return {"answers": [answer], "tokens_per_s": round(got.prompt_tokens / got.seconds, 1), "counter_rise": rise}


def interview(params: dict) -> dict:
    """Return the answers and the counter's rise. Raises EngineError when the proof fails."""
    key = read_key(params["secrets_file"] or "")
    counter = (params["metrics_url"], key, params["engine"])
    before = token_counters(*counter)[1]
    answers = []
    for question in params["questions"]:
        got = ask(params["base_url"], key, params["model"], question, params["max_tokens"], params["timeout_s"])
        lines = [line.strip() for line in got.text.splitlines() if line.strip()]
        answers.append(
            {
                "question": question,
                "text": got.text,
                "first_line": lines[0] if lines else "",
                "completion_tokens": got.completion_tokens,
                "prompt_tokens": got.prompt_tokens,
                "seconds": round(got.seconds, 3),
            }
        )
    reported = sum(answer["completion_tokens"] for answer in answers)
    rise = rise_to(counter, 1, before, reported)
    empty = [answer["question"] for answer in answers if not answer["first_line"]]
    if empty:
        raise EngineError(f"empty answer to {empty[0]!r}: the model or its chat template is unfit for chat")
    seconds = sum(answer["seconds"] for answer in answers)
    return {"answers": answers, "tokens_per_s": round(reported / seconds, 1), "counter_rise": rise}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "engine": {"type": "str", "required": True, "choices": sorted(TOKEN_COUNTERS)},
            "base_url": {"type": "str", "required": True},
            "metrics_url": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "secrets_file": {"type": "path", "no_log": False},
            "questions": {"type": "list", "elements": "str", "required": True},
            "task": {"type": "str", "choices": ["chat", "embed"], "default": "chat"},
            "max_tokens": {"type": "int", "default": 128, "no_log": False},
            "timeout_s": {"type": "int", "default": 300},
            "rig": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    try:
        result = embedded(module.params) if module.params["task"] == "embed" else interview(module.params)
    except EngineError as error:
        module.fail_json(msg=f"{module.params['name']}: {error}")
    rig, name = module.params["rig"], module.params["name"]
    ready_s = read_ready_s(rig, name, read_service(rig, name, lines=0)) if rig else None
    module.exit_json(changed=False, **result, **({} if ready_s is None else {"ready_s": ready_s}))


if __name__ == "__main__":
    main()
