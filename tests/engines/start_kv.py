# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start vLLM's engine on the processor once per case, one after the other in one process.

    ENVIRONMENT/bin/python start_kv.py < CASES

CASES: a JSON list of {"options": those of the command line, "ask": a prompt to be answered, or ""}. The output is what
the engine logs; behind each case follows a line of JSON: {"error": its message or "", "answer": TEXT}. Defaults are
those of a server.
"""

from __future__ import annotations

import gc
import json
import sys


def started(options: list[str], prompt: str) -> str:
    """Start an engine, let it answer, and end it."""
    from vllm import SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    arguments = EngineArgs.from_cli_args(parser.parse_args(options))
    engine, answer = None, ""
    try:
        engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.OPENAI_API_SERVER)
        if prompt:
            engine.add_request("0", prompt, SamplingParams(temperature=0, max_tokens=64))
            while engine.has_unfinished_requests():
                for output in engine.step():
                    answer = output.outputs[0].text
    finally:
        if engine:
            engine.engine_core.shutdown()
        del engine
        gc.collect()
        cleanup_dist_env_and_memory()
    return answer


def main() -> None:
    for case in json.load(sys.stdin):
        found = {"error": "", "answer": ""}
        try:
            found["answer"] = started(case["options"], case["ask"])
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
