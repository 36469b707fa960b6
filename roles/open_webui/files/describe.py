# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run in an image of Open WebUI: print its version and the migrations of its database that it knows."""

import json
import pathlib
import re

REVISION = re.compile(r"""^revision(?:\s*:\s*\w+)?\s*=\s*['"]([0-9a-f]+)['"]""", re.MULTILINE)
app = pathlib.Path("/app")
files = sorted((app / "backend/open_webui/migrations/versions").glob("*.py"))
revisions = [one for path in files for one in REVISION.findall(path.read_text(encoding="utf-8"))[:1]]
version = json.loads((app / "package.json").read_text(encoding="utf-8"))["version"]
print(json.dumps({"version": version, "revisions": revisions}))
