# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan costs: seconds and peak memory from local headers, range requests from a hub.

python tests/benchmarks/vram_speed.py [--json]

Header sets of the 405B class (Llama 3.1 405B in 191 shards, DeepSeek V3 671B in FP8 with 91,000 tensors in 163) are
written as sparse files; each plan runs in a process of its own, started before anything else is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gpurig.llm.plugins.module_utils.hub import Hub
from ansible_collections.gpurig.llm.plugins.module_utils.vram_source import from_hub
from ansible_collections.gpurig.llm.tests.hub_sim import HubSim
from ansible_collections.gpurig.llm.tests.unit.header_sets import LLAMA_405B, write_headers
from ansible_collections.gpurig.llm.tests.unit.test_vram_model import DEEPSEEK_V3

TARGET_S, TARGET_MIB = 1.0, 200.0
FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
SETS: dict[str, tuple[dict[str, Any], str, int]] = {
    "Llama-3.1-405B": (LLAMA_405B, "", 191),
    "DeepSeek-V3 FP8": ({**DEEPSEEK_V3, **FP8}, "fp8", 163),
}
# Runs alone, so that the peak is that of reading and planning and not of writing the set.
ONE_PLAN = """
import json, resource, sys, time
started = time.perf_counter()
from ansible_collections.gpurig.llm.plugins.module_utils.vram.plan import plan
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import Card, Request, Wishes
from ansible_collections.gpurig.llm.plugins.module_utils.vram_source import from_path
imported = time.perf_counter()
found = from_path(sys.argv[1])
read = time.perf_counter()
cards = tuple(Card("NVIDIA H200", 143155 << 20, capability=(9, 0), uuid=str(i)) for i in range(8))
made = plan(Request(found.model, cards, wishes=Wishes(context=8192, tensor_parallel=8)))
done = time.perf_counter()
print(json.dumps({"tensors": len(found.model.tensors), "verdict": made.verdict,
    "weights_gib": round(made.cards[0].parts["weights"].likely / 2**30, 3),
    "import_s": round(imported - started, 3), "read_s": round(read - imported, 3), "plan_s": round(done - read, 3),
    "cpu_s": round(time.process_time(), 3),
    "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}))
"""


def measure(folder: Path, name: str) -> dict[str, Any]:
    """Figures of one header set."""
    config, scheme, count = SETS[name]
    shards = write_headers(folder, config, scheme, count)
    command = [sys.executable, "-c", ONE_PLAN, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return {"shards": len(shards), **json.loads(done.stdout)}


def requests_per_shard(folder: Path) -> float:
    """Range requests that a hub gets per shard. Small models: a stand-in reads every byte it publishes."""
    shards = write_headers(
        folder, {**LLAMA_405B, "num_hidden_layers": 2, "hidden_size": 512, "vocab_size": 1024}, "", 4
    )
    with HubSim() as hub:
        commit = hub.add("acme/model", folder)
        from_hub(Hub({"HF_ENDPOINT": hub.endpoint}), "acme/model", commit)
        return len(hub.downloads(".safetensors")) / len(shards)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    chosen = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in SETS:
            result[name] = measure(Path(place, name.replace(" ", "-")), name)
        result["requests_per_shard"] = requests_per_shard(Path(place, "hub"))
    if chosen.json:
        print(json.dumps(result, indent=2))
        return 0
    for name in SETS:
        found = result[name]
        print(
            f"{name}: {found['tensors']} tensors in {found['shards']} shards: read {found['read_s']} s, planned "
            f"{found['plan_s']} s (with imports {found['cpu_s']} s of processor time), peak {found['peak_mib']} MiB; "
            f"{found['weights_gib']} GiB per card on 8"
        )
    print(f"targets: {TARGET_S} s and {TARGET_MIB} MiB; a hub gets {result['requests_per_shard']:g} requests per shard")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
