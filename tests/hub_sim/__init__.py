# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small model hub on localhost that real clients (hf, vLLM, transformers, llama-server) can download from.

As a library:   with HubSim() as hub: revision = hub.add("acme/tiny", directory); ... hub.endpoint ...
By hand:        python -m ansible_collections.gpurig.llm.tests.hub_sim --root DIR   (DIR/OWNER/NAME/files)
"""

from __future__ import annotations

from .hub import HubSim, Seen

__all__ = ["HubSim", "Seen"]
