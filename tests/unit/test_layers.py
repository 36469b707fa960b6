# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layers of the plugins: our own tree keeps them, and the check sees each way of breaking them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.scripts import layers

PURE = '"""What. (pure)"""\n'
OUTSIDE = '"""What. (outside)"""\n'
GLUE = '"""What. (glue)"""\n'
UTILS = "plugins/module_utils"
BASIC = "from ansible.module_utils.basic import AnsibleModule\n"
ABSOLUTE = "ansible_collections.gpurig.llm.plugins"
FROM_CLEAN = f"from {ABSOLUTE}.module_utils.clean import y\n"


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in {f"{UTILS}/clean.py": PURE, f"{UTILS}/host.py": OUTSIDE, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_our_tree_keeps_the_layers() -> None:
    assert layers.errors() == []


def test_our_tree_has_files_of_both_lower_layers() -> None:
    assert {"pure", "outside"} <= set(layers.utils_layers(layers.ROOT).values())


@pytest.mark.parametrize(
    "files",
    [
        {
            f"{UTILS}/a.py": PURE
            + "import json\nfrom collections.abc import Mapping\nfrom urllib.parse import urlsplit\n"
        },
        {f"{UTILS}/a.py": PURE + "from .clean import x\nfrom . import clean\nfrom pathlib import PurePosixPath\n"},
        {
            f"{UTILS}/a.py": OUTSIDE
            + "import socket\nfrom pathlib import Path\nfrom .clean import x\nfrom .host import y\n"
        },
        {f"{UTILS}/nvml.py": OUTSIDE + "import importlib\nimportlib.import_module('pynvml')\nimport pynvml\n"},
        {f"{UTILS}/a.py": GLUE + "from ansible.module_utils.basic import AnsibleModule\nfrom .host import y\n"},
        {f"{UTILS}/__init__.py": ""},
        {
            f"{UTILS}/pack/__init__.py": "",
            f"{UTILS}/pack/a.py": PURE + "from ..clean import x\nfrom .b import y\n",
            f"{UTILS}/pack/b.py": PURE,
            f"{UTILS}/c.py": OUTSIDE + "from .pack.a import x\n",
        },
        {
            "plugins/modules/a.py": "import os\n" + BASIC + FROM_CLEAN,
        },
        {
            "plugins/filter/a.py": "import yaml\nfrom ansible.errors import E\n" + FROM_CLEAN,
        },
        {"plugins/action/a.py": f"from {ABSOLUTE}.plugin_utils.b import y\n"},
    ],
    ids=["stdlib", "pure", "outside", "nvml", "glue", "empty_init", "package", "module", "filter", "action"],
)
def test_arrows_that_point_down_are_accepted(tmp_path: Path, files: dict[str, str]) -> None:
    assert layers.errors(plant(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("a.py", '"""What."""\n', "must end with (pure)"),
        ("a.py", "", "must end with (pure)"),
        ("a.py", PURE + "import os\n", "may not import os"),
        ("a.py", PURE + "from pathlib import Path\n", "PurePath"),
        ("a.py", PURE + "import pathlib\n", "PurePath"),
        ("a.py", PURE + "import urllib.request\n", "urllib.request"),
        ("a.py", PURE + "def f():\n    import subprocess\n", "may not import subprocess"),
        ("a.py", PURE + "def f(p):\n    return open(p)\n", "calls open()"),
        ("a.py", PURE + "from .host import x\n", "is pure and imports host, which is outside"),
        ("a.py", PURE + "from . import host\n", "is pure and imports host, which is outside"),
        ("pack/a.py", PURE + "from ..host import x\n", "is pure and imports host, which is outside"),
        ("pack/a.py", PURE + "from .clean import x\n", "which is not in module_utils"),
        ("a.py", PURE + "from .nothing import x\n", "which is not in module_utils"),
        ("a.py", PURE + f"from {ABSOLUTE}.module_utils.clean import x\n", "within module_utils imports are relative"),
        ("a.py", PURE + "import yaml\n", "may not import yaml|imports yaml"),
        ("a.py", OUTSIDE + "import requests\n", "imports requests"),
        ("a.py", OUTSIDE + "from ansible.module_utils.basic import AnsibleModule\n", "imports ansible"),
        ("a.py", OUTSIDE + "from ..plugin_utils.b import x\n", "above module_utils"),
        ("a.py", GLUE + "import yaml\n", "imports yaml"),
        ("a.py", OUTSIDE + "import pynvml\n", "only door"),
        ("a.py", OUTSIDE + "import importlib\nimportlib.import_module('pynvml')\n", "only door"),
        ("../modules/a.py", "from ansible.plugins.action import ActionBase\n", "imports ansible.plugins.action"),
        ("../modules/a.py", f"from {ABSOLUTE}.plugin_utils.b import x\n", "only ships module_utils"),
        ("../modules/a.py", "def f():\n    import pynvml\n", "only door"),
        ("../filter/a.py", "import requests\n", "imports requests"),
    ],
)
def test_each_wrong_arrow_is_found(tmp_path: Path, path: str, text: str, expected: str) -> None:
    found = layers.errors(plant(tmp_path, {f"{UTILS}/{path}": text}))
    assert found, "nothing found"
    assert any(part in line for line in found for part in expected.split("|")), found


def test_glue_may_not_be_imported_from_below(tmp_path: Path) -> None:
    files = {f"{UTILS}/g.py": GLUE, f"{UTILS}/a.py": OUTSIDE + "from .g import x\n"}
    assert layers.errors(plant(tmp_path, files)) == [f"{UTILS}/a.py:2: is outside and imports g, which is glue"]


def test_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert layers.main([str(plant(tmp_path, {}))]) == 0
    assert layers.main([str(plant(tmp_path, {f"{UTILS}/a.py": ""}))]) == 1
    assert capsys.readouterr().out.endswith("1 findings\n")
