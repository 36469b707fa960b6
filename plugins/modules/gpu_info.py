#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What NVIDIA's management library and the PCI bus say about this host's graphics cards."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Gather everything a role or a person needs to know about NVIDIA graphics cards
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Reads each card through NVML (NVIDIA's management library, by the Python binding nvidia-ml-py) and compares it with
    what the PCI bus shows.
  - Changes nothing and does not fail when a driver, a card or a reading is missing. What is missing is named with its
    reason; a reading that a card does not give is V(null), never zero.
  - A card that is lost on the way keeps what was read before, and the other cards are read in full.
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.nvml, gpurig.llm.trees]
attributes:
  check_mode:
    support: full
    details: [This module changes nothing.]
  diff_mode:
    support: none
    details: [There is never a difference.]
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Look at the cards
  gpurig.llm.gpu_info:
    nvml_path: /opt/gpurig/tool
  register: cards

- name: Stop where a card is lost
  ansible.builtin.assert:
    that: cards.complete
    fail_msg: "{{ cards.findings | join('; ') }}"
"""

RETURN = r"""
driver:
  description: The driver, as NVML and as the kernel tell it. Empty text where something is not there or not told.
  returned: always
  type: dict
  contains:
    nvml_available:
      description: Whether NVML answered.
      type: bool
    reason:
      description: Why not, in one word, for example V(library_missing), V(driver_not_loaded), V(driver_mismatch).
      type: str
    message:
      description: Why not and what to do, in a sentence.
      type: str
    library:
      description: The library file that was loaded.
      type: str
    library_version:
      description: NVML's own version.
      type: str
      sample: 13.580.95.05
    driver_version:
      description: Version of the driver.
      type: str
      sample: 580.95.05
    cuda_version:
      description: Newest CUDA that the driver supports.
      type: str
      sample: '13.0'
    kernel_module_version:
      description: Version of the kernel module that is loaded, from C(/sys) or C(/proc).
      type: str
    kernel_module_flavour:
      description: V(open), V(proprietary), or empty where none is loaded.
      type: str
complete:
  description: NVML answered and every card that the driver counts could be read. Unsupported readings do not count.
  returned: always
  type: bool
gpus:
  description: Cards that answer, in PCI order, which is CUDA's under C(CUDA_DEVICE_ORDER=PCI_BUS_ID).
  returned: always
  type: list
  elements: dict
  contains:
    index:
      description: NVML's number. It changes when cards move; name cards by C(uuid) or PCI address.
      type: int
    cuda_index:
      description: CUDA's number under C(CUDA_DEVICE_ORDER=PCI_BUS_ID).
      type: int
    uuid:
      description: The card's own name.
      type: str
      sample: GPU-254090cd-6522-5949-a0d8-b9d3c6f50694
    pci:
      description: PCI address as under C(/sys).
      type: str
      sample: '0000:17:00.0'
    name:
      description: Product.
      type: str
      sample: NVIDIA GeForce RTX 3090 Ti
    state:
      description: V(ok), or V(lost) when the card left while it was read.
      type: str
    brand:
      description: Product line.
      type: str
      sample: geforce
    architecture:
      description: Architecture.
      type: str
      sample: ampere
    compute_capability:
      description: CUDA compute capability.
      type: str
      sample: '8.6'
    serial:
      description: Serial number; data-centre cards only.
      type: str
    board_part_number:
      description: Part number of the board; data-centre cards only.
      type: str
    vbios_version:
      description: Version of the card's firmware.
      type: str
    minor_number:
      description: Number of the device file C(/dev/nvidiaN).
      type: int
    numa_node:
      description: NUMA node, where the kernel knows one.
      type: int
    compute_mode:
      description: V(default), V(exclusive_process) or V(prohibited).
      type: str
    display_active:
      description: Whether a display is driven by the card.
      type: bool
    mig_enabled:
      description: Whether the card is split by MIG.
      type: bool
    memory:
      description:
        - Sizes in bytes. C(total_bytes) is NVML's; C(cuda_total_bytes) is what engines see, taken from the catalogue
          (C(cuda_total_source) V(logged)) or NVML's total minus the reserved part (V(estimated)).
      type: dict
      contains:
        total_bytes: {description: NVML's total., type: int}
        reserved_bytes: {description: Kept by driver and firmware., type: int}
        used_bytes: {description: In use., type: int}
        free_bytes: {description: Free., type: int}
        cuda_total_bytes: {description: Total as CUDA reports it., type: int}
        cuda_total_source: {description: V(logged) or V(estimated)., type: str}
        bus_width_bits: {description: Width of the memory bus., type: int}
        bar1_total_bytes: {description: Size of the window into the card's memory., type: int}
        bar1_used_bytes: {description: Part of the window in use., type: int}
        ecc_enabled: {description: Whether error correction is on., type: bool}
    power:
      description: Limits and use in watts.
      type: dict
      contains:
        limit_w: {description: The limit that was asked for., type: float}
        enforced_w: {description: The limit in force., type: float}
        default_w: {description: The card's own limit., type: float}
        min_w: {description: Lowest limit that the card accepts., type: float}
        max_w: {description: Highest limit that the card accepts., type: float}
        usage_w: {description: Power draw now., type: float}
        source: {description: 'V(ac), V(battery) or V(undersized).', type: str}
        persistence: {description: Whether persistence mode is on., type: bool}
        limit_supported: {description: Whether the card accepts limits at all; laptop cards do not., type: bool}
    pcie:
      description: The link. Idle cards lower the current generation, never the width.
      type: dict
      contains:
        generation_current: {description: Generation now., type: int}
        generation_max: {description: What card and machine can do together., type: int}
        generation_card_max: {description: What the card alone can do., type: int}
        width_current: {description: Lanes now., type: int}
        width_max: {description: Lanes that card and machine can do together., type: int}
        replay_counter: {description: Repeated packets; a rising number means a bad riser or cable., type: int}
    clocks:
      description: Clocks in MHz, performance state, and what holds the clocks down.
      type: dict
      contains:
        graphics_mhz: {description: Graphics clock now., type: int}
        graphics_max_mhz: {description: Highest graphics clock., type: int}
        memory_mhz: {description: Memory clock now., type: int}
        memory_max_mhz: {description: Highest memory clock., type: int}
        performance_state: {description: 'From 0 (fastest) to 15.', type: int}
        throttle_mask: {description: NVML's bits., type: int}
        throttle_reasons: {description: 'Their names, for example V(software_power_cap).', type: list, elements: str}
    temperature:
      description: Degrees Celsius.
      type: dict
      contains:
        gpu_c: {description: Now., type: int}
        slowdown_c: {description: Clocks fall from here., type: int}
        shutdown_c: {description: The card switches off from here., type: int}
        fan_percent: {description: Fan speed; cards without a fan of their own have none., type: int}
    utilization:
      description: Percent of the last moments.
      type: dict
      contains:
        gpu_percent: {description: Time in which anything ran., type: int}
        memory_percent: {description: Time in which memory was read or written., type: int}
    processes:
      description: Processes on the card. In containers the numbers are those of the host.
      type: list
      elements: dict
      contains:
        pid: {description: Process., type: int}
        kind: {description: V(compute) or V(graphics)., type: str}
        used_bytes: {description: Its memory on the card; V(null) where the driver does not tell., type: int}
    unavailable:
      description: Readings that the card did not give, by name, each with C(reason) and C(message).
      type: dict
unreachable:
  description: Cards that the driver counts but cannot hand out.
  returned: always
  type: list
  elements: dict
  contains:
    index: {description: NVML's number., type: int}
    pci: {description: 'PCI address, V(null) where it cannot be known.', type: str}
    reason: {description: 'For example V(lost) or V(insufficient_power).', type: str}
    message: {description: What happened and what to do., type: str}
pci_cards:
  description: NVIDIA display and 3D controllers on the PCI bus, whatever the driver says.
  returned: always
  type: list
  elements: dict
  contains:
    pci: {description: PCI address., type: str}
    device_id: {description: PCI device number in hex., type: str}
    kernel_driver: {description: 'The driver bound to it: V(nvidia), V(nouveau), V(vfio-pci) or empty.', type: str}
    numa_node: {description: 'NUMA node, V(null) where the kernel knows none.', type: int}
    in_nvml: {description: Whether NVML shows it., type: bool}
findings:
  description: Everything a person should know, in sentences.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import report_as_dict
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_scan import scan
from ansible_collections.gpurig.llm.plugins.module_utils.machine_args import NVML_PATH, TREES


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={**NVML_PATH, **TREES},
        supports_check_mode=True,
    )
    report = scan(module.params["nvml_path"], module.params["sysfs_root"], module.params["proc_root"])
    module.exit_json(changed=False, **report_as_dict(report))


if __name__ == "__main__":
    main()
