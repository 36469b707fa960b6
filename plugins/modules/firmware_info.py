#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the firmware of mainboard and cards left for Linux to see."""

from __future__ import annotations

DOCUMENTATION = r"""
module: firmware_info
short_description: Read how mainboard and graphics cards are set, as far as Linux can see it
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Reads Above 4G decoding, Resizable BAR, boot mode, Secure Boot, IOMMU, links and more from files of the kernel, with
    the evidence for each. No tool is called; NVML is asked for names, memory and load of the cards where it is there.
  - Changes nothing and does not fail when something is missing. What cannot be known is V(unknown) with its reason.
  - As root it sees more, namely C(/proc/iomem), the cards' configuration space and the SMBIOS tables.
options:
  pci_ids:
    description:
      - The list of PCI devices that names cards before a driver runs. Empty means where Debian and Ubuntu keep it.
    type: path
    default: ''
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
- name: Look at the firmware
  gpurig.llm.firmware_info:
    nvml_path: /opt/gpurig/envs/tool/current
  become: true
  register: firmware

- name: Show what a person should know
  ansible.builtin.debug:
    msg: "{{ firmware.findings }}"
"""

RETURN = r"""
environment:
  description:
    - A reading, V(metal), V(vm) or V(container). All readings have the same four keys.
  returned: always
  type: dict
  contains: &reading
    value:
      description: What was found, or V(unknown).
      type: raw
    evidence:
      description: From what it was concluded.
      type: str
    reason:
      description: Why it is unknown, or what stands in the way of more.
      type: str
    cause:
      description:
        - The reason in a word, namely V(bios) (a switch of the mainboard's firmware), V(card_firmware) (the card's
          VBIOS), V(card), V(vm) (hidden by the virtual machine), V(container) (cannot be read in a container),
          V(rights), V(kernel), V(address_space), V(seat) (contact, riser, cable), V(slot), V(idle), V(lost),
          V(undecided), or empty.
      type: str
boot_mode:
  description: A reading, V(uefi) or V(legacy).
  returned: always
  type: dict
  contains: *reading
csm:
  description:
    - A reading, V(enabled) or V(disabled). After a UEFI boot without Secure Boot it is V(unknown), as Linux cannot see
      it.
  returned: always
  type: dict
  contains: *reading
secure_boot:
  description: A reading, V(enabled) or V(disabled).
  returned: always
  type: dict
  contains: *reading
above_4g_decoding:
  description: A reading, V(enabled) or V(disabled).
  returned: always
  type: dict
  contains: *reading
iommu:
  description: A reading, V(translated), V(passthrough), V(mixed) or V(disabled).
  returned: always
  type: dict
  contains: *reading
aspm_policy:
  description: A reading, the kernel's policy or V(off).
  returned: always
  type: dict
  contains: *reading
board:
  description: What DMI says of the machine, such as C(board_vendor), C(board_name) and C(bios_version).
  returned: always
  type: dict
thunderbolt:
  description: Thunderbolt devices by vendor and name.
  returned: always
  type: list
  elements: str
cards:
  description: NVIDIA display and 3D controllers on the PCI bus, in PCI order, whatever the driver says.
  returned: always
  type: list
  elements: dict
  contains:
    pci: {description: PCI address., type: str, sample: '0000:17:00.0'}
    name: {description: Product; vendor and device number where nothing names it., type: str}
    uuid: {description: UUID; empty before a driver runs., type: str}
    device_id: {description: PCI device number in hex., type: str}
    vbios: {description: Version of the card's firmware., type: str}
    kernel_driver: {description: The driver bound to it., type: str}
    in_nvml: {description: Whether NVML shows it., type: bool}
    ours: {description: False for cards that a container sees on the bus but was not given., type: bool}
    lost: {description: Whether the card no longer answers., type: bool}
    memory_bytes: {description: Its memory; V(null) without NVML., type: int}
    window:
      description: The window into the card's memory.
      type: dict
      contains:
        bar: {description: Number of the base address register., type: int}
        address: {description: 'First address, V(null) where it has none.', type: str}
        size_bytes: {description: Size; 0 where it has no address., type: int}
        offered_bytes:
          description: Sizes that the card offers; empty without the capability, V(null) where it cannot be read.
          type: list
          elements: int
    resizable_bar:
      description:
        - A reading, V(enabled), V(large) (all memory in reach without the capability, as on data-centre cards),
          V(partial), V(disabled), V(fixed) (the card can do no more), V(hidden) (by the virtual machine) or
          V(unassigned) (the window got no address).
      type: dict
      contains: *reading
    link_width:
      description: A reading, lanes in use.
      type: dict
      contains: *reading
    link_generation:
      description: A reading, PCIe generation in use, lower on idle cards.
      type: dict
      contains: *reading
    aspm:
      description: A reading, V(enabled) or V(disabled).
      type: dict
      contains: *reading
    attachment:
      description: A reading, V(thunderbolt), V(removable) or V(pcie). OCuLink is plain PCIe and can only be declared.
      type: dict
      contains: *reading
    link:
      description: The link and all that limits it.
      type: dict
      contains:
        width: {description: Lanes now., type: int}
        width_max: {description: Lanes of the card., type: int}
        width_possible: {description: Lanes that card and slot and every bridge above can do., type: int}
        width_limited_by: {description: Which of them has the fewest., type: str}
        generation: {description: Generation now., type: int}
        generation_max: {description: Generation of the card., type: int}
        generation_possible: {description: Generation that card and every bridge above can do., type: int}
        generation_limited_by: {description: Which of them has the lowest., type: str}
        slot: {description: The slot's name in the mainboard's tables; empty where they name none., type: str}
        slot_width: {description: Lanes of the slot., type: int}
        upstream:
          description: The bridges from the root port down to the card.
          type: list
          elements: dict
          contains:
            pci: {description: PCI address., type: str}
            width: {description: Lanes now., type: int}
            width_max: {description: Most lanes., type: int}
            generation: {description: Generation now., type: int}
            generation_max: {description: Highest generation., type: int}
        correctable_errors: {description: 'Corrected errors since start, V(null) where not counted.', type: int}
complete:
  description: Everything could be read. CSM after a UEFI boot does not count, as nobody can read it.
  returned: always
  type: bool
driver:
  description: Why NVML did not answer; empty where it did.
  returned: always
  type: str
findings:
  description: What a person should know of the cards, in sentences.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.firmware_scan import scan
from ansible_collections.gpurig.llm.plugins.module_utils.machine_args import NVML_PATH, TREES


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **NVML_PATH,
            **TREES,
            "pci_ids": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params
    module.exit_json(
        changed=False, **scan(given["nvml_path"], given["sysfs_root"], given["proc_root"], given["pci_ids"])
    )


if __name__ == "__main__":
    main()
