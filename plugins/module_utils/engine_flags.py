# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of the engines that the roles set themselves, the same for every engine. (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_LISTENING = "engines listen on 127.0.0.1 only; what may be reached from beyond the host is an entry of rig_publish"
_KEY = "the role makes the key and keeps it in a file that only the service can read"
_MODEL = "the key 'model' of the instance names it, rig_models says where it is"

OWNED_FLAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("host", "hostname", "hostnames", "listen", "uds", "reuse-port"), _LISTENING),
        "port": "write the key 'port' of the instance",
        **dict.fromkeys(("api-key", "api-keys", "api-key-file"), _KEY),
        **dict.fromkeys(("model", "m", "model.path", "model-path", "model-url", "mu", "models-dir"), _MODEL),
        **dict.fromkeys(("hf", "hfr", "hff", "hf-repo", "hf-file", "hf-config-path", "download-dir"), _MODEL),
        **dict.fromkeys(("hft", "hf-token"), "write the key 'token_file' under hub of the model in rig_models"),
        **dict.fromkeys(
            ("revision", "code-revision", "tokenizer-revision"),
            "write the key 'revision' under hub of the model in rig_models",
        ),
        **dict.fromkeys(("alias", "a", "model-alias", "served-model-name"), "clients see the name of the instance"),
        "shutdown-timeout": "write the role's variable vllm_shutdown_timeout_s",
        **dict.fromkeys(("runner", "task"), "write the key 'task' of the instance"),
        "config": "write each option of that file as an entry of 'flags'",
        "device": "write the key 'device' or 'gpu_role' of the instance",
        **dict.fromkeys(
            ("max-model-len", "ctx-size", "c", "n-ctx", "num-ctx"), "write the key 'context' of the instance"
        ),
        **dict.fromkeys(("max-num-seqs", "parallel", "np", "n-parallel"), "write the key 'parallel' of the instance"),
    }
)
"""Engine options that the roles set themselves -> what to write instead. Compared without case, with - for _."""


def owned(flag: str) -> str:
    """What to write instead of this option; '' when it is the inventory's to set. Case and _ for - do not matter."""
    return OWNED_FLAGS.get(flag.lstrip("-").replace("_", "-").lower(), "")
