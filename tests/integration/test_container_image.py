# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module container_image as a real process, with a docker command that answers as Docker 26 does.

A real Docker and a real registry are in molecule/compose; here is what would take them too long.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import cli, docker_images
from ansible_collections.gpurig.llm.plugins.module_utils.webui_database import known_revisions, package_version

Module = Callable[..., dict[str, Any]]
NAME = "ghcr.io/open-webui/open-webui"
DIGEST, OTHER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
SAYS = {"version": "0.12.4", "revisions": ["aa11", "bb22"]}
# Keeps what it has in a JSON file beside itself: images, volumes, in use, what a pull answers.
DOCKER = """\
import json, pathlib, sys
place = pathlib.Path(__file__).with_name("state.json")
state = json.loads(place.read_text())
words = sys.argv[1:]
state["calls"].append(words)
code, text = 0, ""
if words[0] == "info":
    text = json.dumps(state["plugins"])
elif words[:2] == ["image", "inspect"]:
    code = 0 if words[-1] in state["images"] else 1
elif words[0] == "pull":
    text = state["pull"] or "Status: Downloaded newer image"
    code = 1 if state["pull"] else 0
    state["images"] += [] if code else [words[-1]]
elif words[0] == "run":
    text = state["answer"]
elif words[:2] == ["image", "rm"]:
    code = 1 if words[-1] in state["used"] else 0
    state["images"] = [image for image in state["images"] if code or image != words[-1]]
elif words[0] == "ps":
    text = "\\n".join(state["running"] if "volume=theirs" in words else [])
elif words[:2] == ["container", "inspect"]:
    code = 0 if words[-1] in state["containers"] else 1
elif words[0] == "rm":
    state["containers"].remove(words[-1])
elif words[0] == "version":
    code = state["down"]
elif words[:2] == ["volume", "inspect"]:
    code = 0 if words[-1] in state["volumes"] else 1
    text = "/var/lib/docker/volumes/" + words[-1] + "/_data"
elif words[:2] == ["volume", "ls"]:
    text = "\\n".join(state["volumes"])
place.write_text(json.dumps(state))
print(text, file=sys.stderr if code else sys.stdout)
sys.exit(code)
"""


class Docker:
    """The command, and what it has."""

    def __init__(self, place: Path) -> None:
        self.state, self.answers = place / "bin" / "state.json", place / "etc" / "answers"
        self.state.parent.mkdir()
        command = self.state.with_name("docker")
        program = command.with_name("docker.py")
        program.write_text(DOCKER)
        # Not in the first line of the program itself: that ends at a blank, and a checkout may lie in a path with one.
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(program))} "$@"\n')
        command.chmod(0o755)
        self.environment = {"PATH": f"{command.parent}:{os.environ['PATH']}"}
        self.state.write_text("{}")
        self.now(
            plugins=[{"Name": "buildx", "Path": "/x"}, {"Name": "compose", "Path": "/plugins/docker-compose"}],
            images=[],
            volumes=["theirs"],
            used=[],
            running=[],
            containers=[],
            down=0,
            pull="",
            answer=json.dumps(SAYS),
            calls=[],
        )

    def now(self, **change: Any) -> dict[str, Any]:
        """Change its state, and return it."""
        state = {**json.loads(self.state.read_text()), **change}
        self.state.write_text(json.dumps(state))
        return dict(state)

    def arguments(self, **more: Any) -> dict[str, Any]:
        program = ["python3", "-c", "print(1)"]
        return {"name": NAME, "digest": DIGEST, "program": program, "answers": str(self.answers), **more}


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    return Docker(tmp_path)


def test_an_image_is_pulled_by_digest_and_asked_once(docker: Docker, run_module: Module) -> None:
    checked = run_module("container_image", docker.arguments(), check=True, environment=docker.environment)
    assert (checked["changed"], docker.now()["images"]) == (True, [])
    done = run_module("container_image", docker.arguments(volume="theirs"), environment=docker.environment)
    assert (done["changed"], done["reference"]) == (True, f"{NAME}@{DIGEST}")
    assert done["compose"] == "/plugins/docker-compose"
    assert done["mountpoint"] == "/var/lib/docker/volumes/theirs/_data"
    release = Path(done["answer_dir"])
    assert (package_version(release), known_revisions(release)) == ("0.12.4", {"aa11", "bb22"})
    asked = next(words for words in docker.now()["calls"] if words[0] == "run")
    assert {"none", "--read-only", "65534:65534"} <= set(asked)
    again = run_module("container_image", docker.arguments(), environment=docker.environment)
    assert (again["changed"], [words for words in docker.now()["calls"] if words[0] == "pull"]) == (
        False,
        [["pull", f"{NAME}@{DIGEST}"]],
    )
    assert list(docker.answers.glob("*.log")) == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (f"Error response from daemon: manifest for {NAME}@{DIGEST} not found: manifest unknown", "has no image of"),
        (f"manifest verification failed for digest {DIGEST}", "is not what the digest names"),
        ("filesystem layer verification failed for digest sha256:00", "is not what the digest names"),
        ("Get https://ghcr.io/v2/: dial tcp: lookup ghcr.io: no such host", "proxies in container_engine_daemon"),
        ("denied: requested access to the resource is denied", "signing in"),
        ("write /var/lib/docker/tmp/x: no space left on device", "the disk is full"),
        ("something new", "Docker said: something new"),
    ],
)
def test_why_a_pull_failed_is_said(docker: Docker, run_module: Module, said: str, words: str) -> None:
    docker.now(pull=said)
    failed = run_module("container_image", docker.arguments(), environment=docker.environment)
    assert words in failed["msg"]
    assert "Nothing was stopped" in failed["msg"]
    assert list(docker.answers.iterdir()) == []


@pytest.mark.parametrize(
    ("state", "arguments", "words"),
    [
        pytest.param({"plugins": None}, {}, "no Compose 2", id="no-compose"),
        pytest.param({}, {"volume": "mine"}, "no volume 'mine'; there are: theirs", id="no-volume"),
        pytest.param({"answer": "hello"}, {}, "is no image as was expected", id="another-image"),
        pytest.param({"answer": "[]"}, {}, "is no image as was expected", id="no-object"),
    ],
)
def test_what_cannot_be_used_is_refused(
    docker: Docker, run_module: Module, state: dict[str, Any], arguments: dict[str, Any], words: str
) -> None:
    docker.now(**state)
    failed = run_module("container_image", docker.arguments(**arguments), environment=docker.environment)
    assert words in failed["msg"]


@pytest.mark.parametrize("check", [True, False])
def test_a_volume_that_another_container_runs_with_is_refused(docker: Docker, run_module: Module, check: bool) -> None:
    page = {"volume": "theirs", "container": "gpurig-open-webui"}
    docker.now(running=["gpurig-open-webui", "open-webui"])
    failed = run_module("container_image", docker.arguments(**page), check=check, environment=docker.environment)
    assert "open-webui runs with it" in failed["msg"]
    assert "docker stop open-webui. Nothing was stopped." in failed["msg"]
    docker.now(running=["gpurig-open-webui"])
    done = run_module("container_image", docker.arguments(**page), check=check, environment=docker.environment)
    assert "failed" not in done


def test_whoever_runs_the_page_reads_the_answer(docker: Docker, run_module: Module) -> None:
    before = os.umask(0o077)
    try:
        done = run_module("container_image", docker.arguments(), environment=docker.environment)
    finally:
        os.umask(before)
    answer = Path(done["answer_dir"], "open_webui.json")
    modes = [path.stat().st_mode & 0o777 for path in (docker.answers, answer.parent, answer)]
    assert modes == [0o755, 0o755, 0o644]


def test_a_container_goes_with_its_images_whatever_registry_they_came_from(docker: Docker, run_module: Module) -> None:
    mirror = "127.0.0.1:5000/open-webui/open-webui"
    for name in (NAME, mirror):
        run_module("container_image", docker.arguments(name=name), environment=docker.environment)
    docker.now(containers=["page", "theirs"], down=1)
    arguments = {"state": "pruned", "answers": str(docker.answers), "container": "page"}
    down = run_module("container_image", arguments, environment=docker.environment)
    assert (down["changed"], down["left"][0]) == (False, "page: no Docker answers here")
    assert len(down["left"]) == 3
    gone = run_module("container_image", arguments, environment={"PATH": str(docker.answers)})
    assert gone["left"] == down["left"]
    docker.now(down=0)
    checked = run_module("container_image", arguments, check=True, environment=docker.environment)
    assert (docker.now()["containers"], docker.answers.exists()) == (["page", "theirs"], True)
    done = run_module("container_image", arguments, environment=docker.environment)
    assert sorted(done["removed"]) == sorted(["page", f"{NAME}@{DIGEST}", f"{mirror}@{DIGEST}"])
    assert done["removed"] == checked["removed"]
    assert (docker.now()["containers"], docker.now()["images"], docker.answers.exists()) == (["theirs"], [], False)


def test_a_docker_that_is_still_to_come(docker: Docker, run_module: Module) -> None:
    nothing = {"PATH": str(docker.answers)}
    checked = run_module("container_image", docker.arguments(volume="x"), check=True, environment=nothing)
    assert (checked["changed"], checked["mountpoint"]) == (True, "")
    assert checked["compose"].endswith("/docker-compose")
    failed = run_module("container_image", docker.arguments(), environment=nothing)
    assert "no docker command" in failed["msg"]


def test_of_our_images_those_stay_that_something_needs(docker: Docker, run_module: Module, tmp_path: Path) -> None:
    for digest in (DIGEST, OTHER):
        run_module("container_image", docker.arguments(digest=digest), environment=docker.environment)
    theirs = f"{NAME}@sha256:{'c' * 64}"
    docker.now(images=[*docker.now()["images"], theirs], used=[])
    (tmp_path / "page.yaml").write_text(f"image: {NAME}@{OTHER}\n")
    arguments = {"state": "pruned", "answers": str(docker.answers), "needed_by": str(tmp_path)}
    checked = run_module("container_image", arguments, check=True, environment=docker.environment)
    assert (checked["removed"], len(docker.now()["images"])) == ([f"{NAME}@{DIGEST}"], 3)
    docker.now(used=[f"{NAME}@{DIGEST}"])
    kept = run_module("container_image", arguments, environment=docker.environment)
    assert (kept["changed"], len(kept["left"])) == (False, 2)
    assert "another container" in kept["left"][0]
    docker.now(used=[])
    done = run_module("container_image", arguments, environment=docker.environment)
    assert (done["removed"], done["left"]) == (checked["removed"], [f"{NAME}@{OTHER}: runs, or is the way back"])
    assert docker.now()["images"] == [f"{NAME}@{OTHER}", theirs]
    assert len(list(docker.answers.iterdir())) == 1


def test_an_uninstall_leaves_nothing_in_docker_and_says_what_it_could_not(
    docker: Docker, run_module: Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = docker.answers.parent
    answers = config / docker_images.PAGE_ANSWERS
    assert cli.page_in_docker(str(config)) == []
    monkeypatch.setenv("PATH", docker.environment["PATH"])
    for digest in (DIGEST, OTHER):
        arguments = docker.arguments(digest=digest, answers=str(answers))
        run_module("container_image", arguments, environment=docker.environment)
    docker.now(containers=[docker_images.PAGE, "theirs"], used=[f"{NAME}@{OTHER}"])
    assert docker_images.PAGE in cli.page_in_docker(str(config))[0]
    cli.leave_docker(str(config))
    assert (docker.now()["containers"], docker.now()["images"]) == (["theirs"], [f"{NAME}@{OTHER}"])
    assert f"{NAME}@{OTHER}: another container uses it" in capsys.readouterr().err
    docker.now(down=1, used=[])
    cli.leave_docker(str(config))
    assert "no Docker answers here" in capsys.readouterr().err
    docker.now(down=0)
    cli.leave_docker(str(config))
    assert (docker.now()["images"], capsys.readouterr().err) == ([], "")
