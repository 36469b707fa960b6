# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plugin of vLLM's that asks Linux for the processor's matrix unit (AMX) before the model is loaded.

vLLM 0.32.0 chooses its AMX attention where the processor has AMX, and does not ask Linux for it, without which a
process ends with SIGILL. TorchInductor asks while it compiles, and so do some of torch's own matrix products at their
first use; an engine whose attention comes before either, as one that finds everything compiled after a restart, ends
at its first request.
"""

from __future__ import annotations

import logging


def register() -> None:
    """Ask for AMX where the processor has it; where Linux refuses, vLLM is told that there is none.

    Models with multi-head latent attention then have other blocks than their memory plan says.
    """
    import torch.cpu  # noqa: PLC0415  only in the engine's environment

    if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
        logging.getLogger("vllm").warning("Linux refuses the processor's AMX to this process: attention runs without.")
        torch.cpu._is_amx_tile_supported = lambda: False
