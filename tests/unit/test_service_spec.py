# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The neutral service spec: what it refuses, and what supervisord and systemd really read in its renderings."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.filter.service_unit import FilterModule
from ansible_collections.gpurig.llm.plugins.module_utils import service_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from supervisor.options import ClientOptions, ServerOptions

GOLDEN = Path(__file__).parent / "golden"
SYSTEMD = Path("/usr/lib/systemd/systemd")
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
NOBODY = 65534

LAYOUT = {
    "bin": "/opt/gpurig/bin",
    "run": "/var/lib/gpurig/run",
    "log": "/var/lib/gpurig/log",
    "supervisor_conf": "/etc/gpurig/supervisord.conf",
    "supervisor_programs": "/etc/gpurig/supervisor.d",
    "supervisor_socket": "/var/lib/gpurig/run/supervisor.sock",
}

CHAT: dict[str, Any] = {
    "name": "chat",
    "description": "llama.cpp: chat",
    "argv": [
        "/opt/gpurig/envs/llama_cpp/current/bin/llama-server",
        "--model",
        "/var/lib/gpurig/models/chat.gguf",
        "--host",
        "127.0.0.1",
        "--port",
        "8000",
    ],
    "environment": {"LLAMA_CACHE": "/var/lib/gpurig/cache/llama_cpp", "HOME": "/var/lib/gpurig"},
    "secrets_file": "/etc/gpurig/secrets/chat.env",
    "gpu_role": "inference",
    "user": "gpurig",
    "group": "gpurig",
    "working_dir": "/var/lib/gpurig",
    "after": ["gpu-power"],
    "before": ["open-webui"],
    "conflicts": ["training"],
    "restart": {"starts": 4, "window_s": 1200, "delay_s": 10},
    "start_timeout_s": 900,
    "stop_timeout_s": 45,
    "health_url": "http://127.0.0.1:8000/health",
    "log_dir": "/var/lib/gpurig/log",
    "inputs": ["/opt/gpurig/envs/llama_cpp/current"],
    "read_write_paths": ["/var/lib/gpurig/cache", "/var/lib/gpurig/run"],
    "labels": {"port": "8000", "engine": "llama_cpp", "model": "chat"},
}
POWER: dict[str, Any] = {
    "name": "gpu-power",
    "description": "Power limits of the cards",
    "argv": ["/opt/gpurig/bin/gpurig", "power", "apply"],
    "oneshot": True,
    "before": ["chat"],
    "again_after": ["resume", "gpu_driver"],
    "capabilities": ["CAP_SYS_ADMIN"],
    "start_timeout_s": 60,
}
ODD: dict[str, Any] = {
    "name": "odd",
    "description": "100 % \"odd\" $HOME 'and' \\ %n ; # more",
    "argv": [
        '/opt/an engine/100% "sure" #1/serve $HOME',
        "",
        "-",
        "--template={% if a %}\"{{ b['c'] }}\"{% endif %}",
        "a #b ;c\t;d",
        ";",
        "#",
        "$HOME ${HOME} $$ %n %% %(here)s %(ENV_HOME)s",
        "back\\slash \\n \\",
        'it\'s "quoted"',
        "größe \u2003#3",
    ],
    "environment": {"NOTE": "a \"b\" 'c' \\ $d %e ;f #g", "EMPTY": ""},
    "secrets_file": "/etc/gpurig/secrets/100% odd; #1",
    "user": "gpurig",
    "working_dir": "/var/lib/gpurig/100% odd; #1",
    "log_dir": "/var/lib/gpurig/log 50% ;x %(here)s",
    "read_write_paths": ['/var/lib/gpurig/a "b" \\c %d'],
}
PAGE: dict[str, Any] = {
    "name": "open-webui",
    "argv": ["/usr/libexec/docker/cli-plugins/docker-compose", "up", "--pull", "never"],
    "user": "root",
    "after_units": ["docker.service"],
    "stop_exits": [130],
    "inputs": ["/etc/gpurig/secrets/open-webui.env"],
}
SPECIMENS = {"chat": CHAT, "gpu-power": POWER, "odd": ODD, "page": PAGE}


def problems_of(spec: Any) -> tuple[str, ...]:
    with pytest.raises(service_spec.SpecError) as caught:
        service_spec.parse(spec)
    return caught.value.problems


def small(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "argv": ["/bin/x"], **changes}


# --- the spec


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gpurole": "a"}, "gpurole: unknown key; did you mean gpu_role?"),
        ({"zzz": "a"}, "zzz: unknown key; known: name, argv, "),
        ({3: "a"}, "3: unknown key"),
        ({"restart": {"start": 1}}, "restart.start: unknown key; did you mean starts?"),
        ({"name": None}, "name: missing"),
        ({"name": ""}, "name: missing"),
        ({"name": 3}, "name: is the number 3; needed: text, as in '3'"),
        ({"name": "Chat"}, "name: is 'Chat'; needed: a to z"),
        ({"name": "-a"}, "name: is '-a'; needed"),
        ({"name": "a" * 42}, "at most 41"),
        ({"name": "x\n"}, "name: character 2 is '\\n'; needed: one line"),
        ({"name": "all"}, "name: 'all' means something else to supervisord"),
        ({"name": "supervisord"}, "means something else"),
        ({"argv": None}, "argv: missing"),
        ({"argv": "/bin/x -a"}, "argv: is text; needed: a list"),
        ({"argv": []}, "argv: has no program"),
        ({"argv": [""]}, "argv: has no program"),
        ({"argv": ["serve"]}, "argv[0]: is 'serve'; needed: an absolute path"),
        ({"argv": ["/bin/x", "--port", 8000]}, "argv[2]: is the number 8000; needed: text, as in '8000'"),
        ({"argv": ["/bin/x", True]}, "argv[1]: is True; needed: text"),
        ({"argv": ["/bin/x", None]}, "argv[1]: is nothing; needed: text"),
        ({"argv": ["/bin/x", ["a"]]}, "argv[1]: is a list; needed: text"),
        ({"argv": ["/bin/x", "a\nb"]}, "argv[1]: character 2 is '\\n'"),
        ({"argv": ["/bin/x", "a\rb"]}, "argv[1]: character 2 is '\\r'"),
        ({"argv": ["/bin/x", "a\0b"]}, "argv[1]: character 2 is '\\x00'"),
        ({"argv": ["/bin/x", "a\x85b"]}, "argv[1]: character 2 is '\\x85'"),
        ({"argv": ["/bin/x", "\ud800"]}, "argv[1]: character 1 is '\\ud800'"),
        ({"argv": ["/bin/x", "\ufffe"]}, "argv[1]: character 1 is '\\ufffe'"),
        ({"argv": ["/bin/x", "--api-key", "hush"]}, "argv[1]: --api-key takes a secret"),
        ({"argv": ["/bin/x", "--api-key=hush"]}, "argv[1]: --api-key takes a secret"),
        ({"description": "a\\"}, "description: ends with a backslash"),
        ({"environment": ["A=1"]}, "environment: is a list; needed: a mapping of texts"),
        ({"environment": {"A": 1}}, "environment.A: is the number 1; needed: text"),
        ({"environment": {"A-B": "1"}}, "environment: 'A-B' is no name for a variable"),
        ({"environment": {1: "1"}}, "environment, the key 1: is the number 1; needed: text"),
        ({"environment": {"": "1"}}, "environment: has an empty key"),
        ({"environment": {"A": "b\nc"}}, "environment.A: character 2"),
        ({"environment": {"HF_TOKEN": "hush"}}, "environment.HF_TOKEN: looks like a secret"),
        ({"environment": {"OPENAI_API_KEY": "hush"}}, "environment.OPENAI_API_KEY: looks like a secret"),
        ({"secrets_file": "secrets"}, "secrets_file: is 'secrets'; needed: an absolute path"),
        ({"working_dir": "/a/../b"}, "working_dir: is '/a/../b'; needed: an absolute path without"),
        ({"working_dir": "//a"}, "working_dir: is '//a'; needed"),
        ({"working_dir": "/a/"}, "working_dir: is '/a/'; needed"),
        ({"working_dir": "/a "}, "working_dir: is '/a '; needed: a path that does not end with a blank"),
        ({"working_dir": "/a\\"}, "needed: a path that does not end with a blank or a backslash"),
        ({"log_dir": "log"}, "log_dir: is 'log'"),
        ({"inputs": "/a"}, "inputs: is text; needed: a list"),
        ({"inputs": ["/a", "b"]}, "inputs[1]: is 'b'"),
        ({"inputs": [""]}, "inputs[0]: is empty; leave it out"),
        ({"read_write_paths": {"a": "b"}}, "read_write_paths: is a mapping; needed: a list"),
        ({"gpu_role": "-x"}, "gpu_role: is '-x'; needed"),
        ({"gpu_role": "a b"}, "gpu_role: is 'a b'; needed"),
        ({"user": "a b"}, "user: is 'a b'; needed"),
        ({"group": "%i"}, "group: is '%i'; needed"),
        ({"oneshot": "yes"}, "oneshot: is text; needed: true or false"),
        ({"oneshot": True, "again_after": ["boot"]}, "again_after[0]: is 'boot'; needed: one of resume, gpu_driver"),
        ({"again_after": ["resume"]}, "again_after: is for a oneshot"),
        ({"after": ["b c"]}, "after[0]: is 'b c'"),
        ({"after_units": ["docker"]}, "after_units[0]: is 'docker'; needed: the whole name of a unit"),
        ({"after": ["x"]}, "after: names the service itself"),
        ({"conflicts": ["x"]}, "conflicts: names the service itself"),
        ({"restart": 5}, "restart: is the number 5; needed: a mapping of starts, window_s, delay_s"),
        ({"restart": {"starts": 0}}, "restart.starts: is the number 0; needed: a whole number, 1 or more"),
        ({"restart": {"starts": True}}, "restart.starts: is True; needed: a whole number"),
        ({"restart": {"delay_s": 1.5}}, "restart.delay_s: is the number 1.5; needed: a whole number"),
        ({"restart": {"starts": 6, "window_s": 60, "delay_s": 10}}, "the budget would never be spent"),
        ({"start_timeout_s": 0}, "start_timeout_s: is the number 0"),
        ({"stop_timeout_s": "30"}, "stop_timeout_s: is text; needed: a whole number"),
        ({"health_url": "127.0.0.1:8000/health"}, "health_url: is no address"),
        ({"health_url": "http:///health"}, "health_url: is no address"),
        ({"health_url": "http://[::1/health"}, "health_url: is no address"),
        ({"health_url": "http://u:hush@127.0.0.1/"}, "health_url: is no address"),
        ({"health_url": "http://127.0.0.1/a b"}, "health_url: is no address"),
        ({"capabilities": ["sys_admin"]}, "capabilities[0]: is 'sys_admin'; needed: a name from capabilities(7)"),
        ({"labels": {"port": 8000}}, "labels.port: is the number 8000; needed: text, as in '8000'"),
    ],
)
def test_a_fault_is_named(changes: dict[Any, Any], expected: str) -> None:
    problems = problems_of(small() | changes)
    assert len(problems) == 1
    assert expected in problems[0]
    assert "hush" not in problems[0]


def test_all_faults_come_at_once_and_name_the_service() -> None:
    with pytest.raises(service_spec.SpecError) as caught:
        service_spec.parse(small(name="chat", usr="x", oneshot=1, restart={"starts": -1}, inputs=["a", "b"]))
    assert len(caught.value.problems) == 5
    assert str(caught.value).startswith("the spec of service 'chat' cannot be used:\n- usr: unknown key")
    assert str(caught.value).count("\n- ") == 5


@pytest.mark.parametrize("spec", [None, [], "chat", 3])
def test_a_spec_is_a_mapping(spec: Any) -> None:
    assert "needed: a mapping" in problems_of(spec)[0]
    with pytest.raises(service_spec.SpecError, match="needed: a mapping"):
        service_spec.file_name(spec, "systemd")


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, {"TOKENIZERS_PARALLELISM": "x"}, {"HF_TOKEN_PATH": "/a"}, {"API_KEY": ""}],
)
def test_what_only_sounds_like_a_secret_passes(environment: dict[str, str]) -> None:
    assert dict(service_spec.parse(small(environment=environment)).environment) == environment


def test_defaults() -> None:
    assert service_spec.normalize({"name": "x", "argv": ("/bin/x",), "user": None, "restart": {"starts": 3}}) == {
        "name": "x",
        "argv": ["/bin/x"],
        "description": "",
        "environment": {},
        "secrets_file": "",
        "gpu_role": "",
        "user": "",
        "group": "",
        "working_dir": "",
        "memory_dir": "",
        "oneshot": False,
        "before": [],
        "after": [],
        "after_units": [],
        "conflicts": [],
        "again_after": [],
        "restart": {"starts": 3, "window_s": 300, "delay_s": 5},
        "start_timeout_s": 600,
        "stop_timeout_s": 60,
        "stop_exits": [],
        "health_url": "",
        "log_dir": "",
        "inputs": [],
        "read_write_paths": [],
        "capabilities": [],
        "labels": {},
    }


@pytest.mark.parametrize("spec", SPECIMENS.values(), ids=SPECIMENS)
def test_record_is_the_same_text_for_the_same_service_and_reads_back(spec: dict[str, Any]) -> None:
    record = service_spec.to_json(spec)
    shuffled = {key: spec[key] for key in reversed(spec)}
    if "environment" in spec:
        shuffled["environment"] = dict(reversed(spec["environment"].items()))
    assert service_spec.to_json(shuffled) == record
    assert record.endswith("}\n")
    assert service_spec.normalize(json.loads(record)) == service_spec.normalize(spec)
    assert service_spec.to_json(json.loads(record)) == record
    for manager in service_spec.MANAGERS:
        assert service_spec.render(json.loads(record), manager, LAYOUT) == service_spec.render(spec, manager, LAYOUT)


def test_file_names_need_the_name_only() -> None:
    assert service_spec.file_name({"name": "chat"}, "systemd") == "gpurig-chat.service"
    assert service_spec.file_name({"name": "chat", "bad": 1}, "supervisord") == "chat.conf"
    for spec, manager, expected in (
        ({"name": "../x"}, "systemd", "name: is '../x'"),
        ({"name": ""}, "systemd", "name: is empty"),
        ({}, "systemd", "name: is nothing"),
        ({"name": "x"}, "supervisor", "did you mean supervisord?"),
    ):
        with pytest.raises(service_spec.SpecError, match=re.escape(expected)):
            service_spec.file_name(spec, manager)


# --- golden files


def golden_cases() -> Iterator[tuple[str, Callable[[], str]]]:
    for spec in SPECIMENS.values():
        for manager in service_spec.MANAGERS:
            yield service_spec.file_name(spec, manager), lambda s=spec, m=manager: service_spec.render(s, m, LAYOUT)
    yield "supervisord-itself.conf", lambda: service_spec.render_supervisord_conf(LAYOUT)


@pytest.mark.parametrize(("name", "render"), list(golden_cases()), ids=[name for name, _ in golden_cases()])
def test_golden(name: str, render: Callable[[], str]) -> None:
    """To accept new texts: GPURIG_ACCEPT_GOLDEN=1 pytest tests/unit/test_service_spec.py, and read the difference."""
    if os.environ.get("GPURIG_ACCEPT_GOLDEN"):
        (GOLDEN / name).write_text(render(), encoding="utf-8")
    assert render() == (GOLDEN / name).read_text(encoding="utf-8")


def test_every_golden_file_has_its_case() -> None:
    ours = {path.name for suffix in ("service", "conf") for path in GOLDEN.glob(f"*.{suffix}")}
    assert ours == {name for name, _ in golden_cases()}


# --- strange texts

_PIECES = st.one_of(
    st.sampled_from(
        [
            *("%", "%%", "%n", "%(here)s", "%(here).0s", "%(ENV_HOME)s", "%(program_name)s", "%%(here)s"),
            *(" #", " ;", "\t#", "\t;", "\u2003#", "\u00a0;", ";", "#", " ", "\t"),
            *("$", "$$", "$HOME", "${HOME}", "$\\", "\\", "\\\\", "\\n", "\\x41", "\\s", "\\;"),
            *('"', "'", "'\"'\"'", "-", "--", "=", ":", "[x]", "{", "}", "~", "*", "!", "@", "+", "/"),
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]).filter(lambda c: not service_spec._bad_letter(c)), max_size=4),
)
WORDS = st.lists(_PIECES, max_size=6).map("".join)
ARGVS = (
    st.lists(WORDS, max_size=5)
    .map(lambda words: ["/opt/engine/serve", *words])
    .filter(lambda argv: not any(service_spec._SECRET_FLAG.fullmatch(word) for word in argv))
)
ENVIRONMENTS = st.dictionaries(st.sampled_from(["A", "B_2", "_c"]), WORDS, max_size=2)


def _directory_name(text: str) -> bool:
    name = text.strip("\\")
    return name == text and name == name.strip() and name not in {"", ".", ".."} and len(name.encode()) < 100


NAMES = WORDS.map(lambda text: text.replace("/", "|")).filter(_directory_name)


# --- what supervisord reads


def supervisor_options(conf: Path) -> ServerOptions:
    options = ServerOptions()
    options.realize(args=["-c", str(conf)])
    return options


def _main_conf(directory: Path) -> Path:
    conf = directory / "supervisord.conf"
    conf.write_text("[supervisord]\n[include]\nfiles = programs/*.conf\n", encoding="utf-8")
    (directory / "programs").mkdir(exist_ok=True)
    return conf


def expected_supervisord_argv(spec: dict[str, Any], bin_dir: str) -> list[str]:
    words = [f"{bin_dir}/gpurig", "exec", "--name", spec["name"]]
    words += ["--gpu-role", spec["gpu_role"]] if spec.get("gpu_role") else []
    words += ["--secrets", spec["secrets_file"]] if spec.get("secrets_file") else []
    if not spec.get("oneshot"):
        restart = {"starts": 5, "window_s": 300, "delay_s": 5} | spec.get("restart", {})
        words += ["--restart-budget", f"{restart['starts']}/{restart['window_s']}"]
        words += ["--restart-delay", str(restart["delay_s"])]
    for key, value in sorted(spec.get("environment", {}).items()):
        words += ["--env", f"{key}={value}"]
    return [*words, "--", *spec["argv"]]


def read_program(directory: Path, spec: dict[str, Any], layout: dict[str, str]) -> Any:
    """The program as the real parser of supervisord understands our file."""
    conf = _main_conf(directory)
    program = directory / "programs" / "x.conf"
    program.write_text(service_spec.render_supervisord(spec, layout), encoding="utf-8")
    [group] = supervisor_options(conf).process_group_configs
    [read] = group.process_configs
    return read


@pytest.mark.parametrize("spec", SPECIMENS.values(), ids=SPECIMENS)
def test_supervisord_reads_the_specimens(tmp_path: Path, spec: dict[str, Any]) -> None:
    log_dir = tmp_path / "logs 50% ;x %(here)s"
    log_dir.mkdir()
    spec = {key: value for key, value in spec.items() if key not in {"user", "log_dir"}}
    read = read_program(tmp_path, spec, LAYOUT | {"log": str(log_dir)})
    oneshot = spec.get("oneshot", False)
    assert shlex.split(read.command) == expected_supervisord_argv(spec, LAYOUT["bin"])
    assert read.name == spec["name"]
    assert read.directory == spec.get("working_dir")
    assert read.stdout_logfile == f"{log_dir}/{spec['name']}.log"
    assert (read.stdout_logfile_maxbytes, read.stdout_logfile_backups) == (10 * 1024 * 1024, 3)
    assert read.stderr_logfile is None
    assert read.redirect_stderr
    assert (read.startsecs, read.startretries, read.autostart) == (0, 0, True)
    assert (read.stopasgroup, read.killasgroup, read.stopwaitsecs) == (True, True, spec.get("stop_timeout_s", 60))
    assert (read.umask, read.uid, read.environment) == (0o077, None, {})
    if oneshot:
        assert read.autorestart is False
    else:
        assert read.autorestart.__name__ == "RestartWhenExitUnexpected"
        assert read.exitcodes == [78]


def test_supervisord_gets_a_user_when_there_is_one(tmp_path: Path) -> None:
    assert read_program(tmp_path, small(user=str(os.getuid())), LAYOUT | {"log": str(tmp_path)}).uid == os.getuid()


@settings(deadline=None, max_examples=120)
@given(argv=ARGVS, environment=ENVIRONMENTS, bin_name=NAMES, place=NAMES)
def test_supervisord_starts_exactly_the_argv(
    tmp_path_factory: pytest.TempPathFactory, argv: list[str], environment: dict[str, str], bin_name: str, place: str
) -> None:
    try:
        spec = small(argv=argv, environment=environment, working_dir=f"/{place}", secrets_file=f"/s/{place}")
        service_spec.parse(spec)
    except service_spec.SpecError as error:  # pragma: no cover
        raise AssertionError(f"the strategy makes bad specs: {error}") from error
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, place)
        log.mkdir()
        read = read_program(Path(directory), spec, LAYOUT | {"bin": f"/{bin_name}", "log": str(log)})
        assert shlex.split(read.command) == expected_supervisord_argv(spec, f"/{bin_name}")
        assert read.directory == f"/{place}"
        assert read.stdout_logfile == f"{log}/x.log"


def rig_layout(root: Path) -> dict[str, str]:
    layout = {
        **{key: str(root / key) for key in ("bin", "run", "log")},
        "supervisor_conf": str(root / "etc" / "supervisord.conf"),
        "supervisor_programs": str(root / "etc" / "supervisor.d"),
        "supervisor_socket": str(root / "run" / "s.sock"),
    }
    for key in ("bin", "run", "log", "supervisor_programs"):
        Path(layout[key]).mkdir(parents=True, exist_ok=True)
    return layout


@settings(deadline=None, max_examples=60)
@given(name=NAMES.filter(lambda text: not re.search(r"[\[*?]", text)))
def test_supervisord_reads_its_own_configuration_wherever_it_lies(name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, name)
        layout = rig_layout(root)
        conf = Path(layout["supervisor_conf"])
        conf.write_text(service_spec.render_supervisord_conf(layout), encoding="utf-8")
        program = Path(layout["supervisor_programs"], "x.conf")
        program.write_text(service_spec.render_supervisord(small(), layout), encoding="utf-8")
        options = supervisor_options(conf)
        assert [group.name for group in options.process_group_configs] == ["x"]
        assert options.logfile == f"{root}/log/supervisord.log"
        assert options.pidfile == f"{root}/run/supervisord.pid"
        assert options.childlogdir == f"{root}/log"
        assert (options.logfile_maxbytes, options.logfile_backups) == (5 * 1024 * 1024, 3)
        assert (options.nodaemon, options.umask, options.minfds, options.minprocs) == (False, 0o077, 256, 1)
        [server] = options.server_configs
        assert (server["file"], server["chmod"]) == (f"{root}/run/s.sock", 0o700)
        assert (server["username"], server["password"]) == (None, None)
        client = ClientOptions()
        client.realize(args=["-c", str(conf)])
        assert client.serverurl == f"unix://{root}/run/s.sock"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"log": ""}, "paths.log: missing"),
        ({"run": "run"}, "paths.run: is 'run'; needed: an absolute path"),
        ({"supervisor_conf": "/a[1]/supervisord.conf"}, "has one of [*? in it, and supervisord's include cannot name"),
        ({"supervisor_programs": "/etc/gpurig/my programs"}, "paths.supervisor_programs: 'my programs' has a blank"),
    ],
)
def test_a_layout_that_cannot_be_written_down_is_refused(changes: dict[str, str], expected: str) -> None:
    with pytest.raises(service_spec.SpecError, match=re.escape(expected)):
        service_spec.render_supervisord_conf(LAYOUT | changes)


def test_a_layout_is_a_mapping() -> None:
    with pytest.raises(service_spec.SpecError, match="the host's layout cannot be used:\n- it is text"):
        service_spec.render_supervisord(small(), "/opt/gpurig")  # type: ignore[arg-type]


# --- a running supervisord

STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
name = sys.argv[sys.argv.index("--name") + 1]
seen = Path(__file__).parent / f"{{name}}.json"
runs = json.loads(seen.read_text()) if seen.exists() else []
runs.append({{"argv": sys.argv[1:], "cwd": os.getcwd()}})
new = seen.with_suffix(".new")
new.write_text(json.dumps(runs))
new.replace(seen)
if name == "flaky":
    sys.exit([0, 1, 78, 0][len(runs) - 1])
print("up", flush=True)
print("to stderr", file=sys.stderr, flush=True)
os.execv("/bin/sleep", ["sleep", "600"])
"""


def wait_for(what: str, happened: Callable[[], bool], within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.05)


def test_a_real_supervisord_starts_exactly_the_argv(tmp_path: Path) -> None:
    """In a place with every character that its configuration gives a meaning to."""
    root = tmp_path / "100% #1 ;x %(here)s $y 'z"
    layout = rig_layout(root)
    # A socket's path has 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="g %#1 #") as sockets:
        layout["supervisor_socket"] = f"{sockets}/s"
        tool = Path(layout["bin"], "gpurig")
        tool.write_text(STAND_IN.format(python=Path(sys.executable).resolve()), encoding="utf-8")
        tool.chmod(0o755)
        odd = {**ODD, "working_dir": str(root), "user": str(os.getuid())}
        del odd["log_dir"]
        specs = [odd, small(name="flaky", restart={"delay_s": 0})]
        for spec in specs:
            path = Path(layout["supervisor_programs"], service_spec.file_name(spec, "supervisord"))
            path.write_text(service_spec.render_supervisord(spec, layout), encoding="utf-8")
        conf = Path(layout["supervisor_conf"])
        conf.write_text(service_spec.render_supervisord_conf(layout), encoding="utf-8")

        def ctl(*words: str) -> str:
            command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(conf), *words]
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout

        def runs(name: str) -> list[Any]:
            seen = tool.with_name(f"{name}.json")
            return json.loads(seen.read_text()) if seen.exists() else []

        daemon = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(conf)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        try:
            wait_for("the start of odd", lambda: len(runs("odd")) == 1)
            wait_for("two restarts of flaky", lambda: len(runs("flaky")) == 3)
            wait_for("odd's output", lambda: "to stderr" in Path(layout["log"], "odd.log").read_text())
            assert runs("odd") == [{"argv": expected_supervisord_argv(odd, layout["bin"])[1:], "cwd": str(root)}]
            assert (tool.with_name("odd.json").stat().st_mode & 0o777) == 0o600
            status = ctl("status")
            assert re.search(r"^odd +RUNNING ", status, re.MULTILINE), status
            assert re.search(r"^flaky +EXITED ", status, re.MULTILINE), status
            # Exit codes 0 and 1 brought it back; 78, the spent budget, did not.
            assert len(runs("flaky")) == 3
            assert Path(layout["run"], "supervisord.pid").read_text().strip() == str(daemon.pid)
            daemon.terminate()
            assert daemon.wait(timeout=20) == 0
            assert "stopped: odd" in Path(layout["log"], "supervisord.log").read_text()
        finally:
            if daemon.poll() is None:
                daemon.terminate()
                daemon.wait(timeout=20)


# --- what systemd reads


def logical_lines(text: str) -> list[str]:
    """systemd.syntax(7): comment lines, and a backslash at a line's end continues it."""
    lines: list[str] = []
    pending = ""
    for line in text.splitlines():
        if re.match(r"\s*[#;]", line):
            continue
        odd_backslashes = len(re.search(r"\\*$", line)[0]) % 2 == 1  # type: ignore[index]
        pending += line[:-1] + " " if odd_backslashes else line
        if not odd_backslashes:
            lines.append(pending.strip())
            pending = ""
    return lines


def values(text: str, key: str) -> list[str]:
    return [line[len(key) + 1 :] for line in logical_lines(text) if line.startswith(f"{key}=")]


def unquoted(value: str) -> list[str]:
    """systemd.syntax(7), Quoting: both quotes protect blanks, escapes count in both and outside, words may be glued."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    letters = iter(value)
    for letter in letters:
        if letter == "\\":
            escaped = next(letters)
            assert escaped in '\\"', f"an escape we never write: {escaped!r}"
            word = (word or "") + escaped
        elif quote:
            quote = "" if letter == quote else quote
            word = (word or "") + (letter if quote else "")
        elif letter in "'\"":
            quote = letter
            word = word or ""
        elif letter in " \t":
            words += [word] if word is not None else []
            word = None
        else:
            assert letter != ";" or word is not None, "a bare ';' begins another command"
            word = (word or "") + letter
    assert not quote
    return [*words, *([word] if word is not None else [])]


def specifiers_resolved(word: str) -> str:
    """systemd.unit(5), Specifiers: we use none, so each % is doubled."""
    assert not re.search("%(?!%)", word.replace("%%", "")), f"a specifier: {word}"
    return word.replace("%%", "%")


def variables_resolved(words: list[str], known: dict[str, str]) -> list[str]:
    """systemd.service(5), Command lines: $NAME as a word of its own is split, ${NAME} replaced, $$ is a dollar sign."""
    found: list[str] = []
    for word in words:
        if re.fullmatch(r"\$[A-Za-z_]\w*", word):
            found += known.get(word[1:], "").split()
        else:
            found.append(
                re.sub(
                    r"\$\$|\$\{([A-Za-z_]\w*)\}",
                    lambda hit: "$" if hit[0] == "$$" else known.get(hit[1], ""),
                    word,
                )
            )
    return found


CREDENTIALS = {"CREDENTIALS_DIRECTORY": "/run/credentials/gpurig-x.service", "HOME": "/never", "X": "never"}


def started_by(unit: str) -> list[str]:
    [command] = values(unit, "ExecStart")
    words = [specifiers_resolved(word) for word in unquoted(command)]
    return [words[0], *variables_resolved(words[1:], CREDENTIALS)]


def expected_systemd_argv(spec: dict[str, Any], bin_dir: str) -> list[str]:
    words = [f"{bin_dir}/gpurig", "exec", "--name", spec["name"]]
    words += ["--gpu-role", spec["gpu_role"]] if spec.get("gpu_role") else []
    words += ["--secrets", "/run/credentials/gpurig-x.service/secrets"] if spec.get("secrets_file") else []
    return [*words, "--", *spec["argv"]]


@settings(deadline=None, max_examples=200)
@given(argv=ARGVS, environment=ENVIRONMENTS, place=NAMES)
def test_systemd_starts_exactly_the_argv(argv: list[str], environment: dict[str, str], place: str) -> None:
    bin_dir = "/" + re.sub(r"[\"'\\]", "_", place)
    spec = small(
        argv=argv, environment=environment, working_dir=f"/{place}", read_write_paths=[f"/{place}"], secrets_file="/s"
    )
    unit = service_spec.render_systemd(spec, LAYOUT | {"bin": bin_dir})
    assert started_by(unit) == expected_systemd_argv(spec, bin_dir)
    read = [unquoted(value) for value in values(unit, "Environment")]
    assert [[specifiers_resolved(word) for word in words] for words in read] == [
        [f"{key}={value}"] for key, value in sorted(environment.items())
    ]
    writable = [unquoted(value) for value in values(unit, "ReadWritePaths")]
    assert [[specifiers_resolved(word) for word in words] for words in writable] == [[f"/{place}"], [LAYOUT["run"]]]
    assert specifiers_resolved(values(unit, "WorkingDirectory")[0]) == f"/{place}"


@pytest.mark.parametrize(
    ("changes", "layout", "expected"),
    [
        ({}, {"bin": "/tmp/x/bin"}, "paths.bin: '/tmp/x/bin' lies in /tmp, and systemd gives the service another /tmp"),
        ({}, {"run": "/var/tmp/run"}, "paths.run: '/var/tmp/run' lies in /var/tmp"),
        ({"argv": ["/tmp/x"]}, {}, "argv[0]: '/tmp/x' lies in /tmp"),
        ({"working_dir": "/tmp"}, {}, "working_dir: '/tmp' lies in /tmp"),
        ({"read_write_paths": ["/a", "/tmp/b"]}, {}, "read_write_paths[1]: '/tmp/b' lies in /tmp"),
        ({}, {"bin": "/it's"}, "has a quote or a backslash"),
        ({}, {"bin": ""}, "paths.bin: missing"),
    ],
)
def test_a_place_that_the_unit_cannot_reach_is_refused(
    changes: dict[str, Any], layout: dict[str, str], expected: str
) -> None:
    with pytest.raises(service_spec.SpecError, match=re.escape(expected)):
        service_spec.render_systemd(small(**changes), LAYOUT | layout)


def test_unknown_manager() -> None:
    with pytest.raises(service_spec.SpecError, match=r"manager: 'upstart' is unknown; known: systemd, supervisord"):
        service_spec.render(small(), "upstart", LAYOUT)


def test_capabilities_of_a_service_that_is_not_root_are_ambient() -> None:
    unit = service_spec.render_systemd(small(user="gpurig", capabilities=["CAP_SYS_ADMIN", "CAP_NET_RAW"]), LAYOUT)
    assert values(unit, "CapabilityBoundingSet") == ["CAP_SYS_ADMIN CAP_NET_RAW"]
    assert values(unit, "AmbientCapabilities") == ["CAP_SYS_ADMIN CAP_NET_RAW"]
    assert values(service_spec.render_systemd(POWER, LAYOUT), "AmbientCapabilities") == []


def test_cards_stay_reachable_and_code_may_be_compiled() -> None:
    """None of these works for an engine on a GPU; see the comment beside the list of protections."""
    unit = service_spec.render_systemd(CHAT, LAYOUT)
    for key in ("PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"):
        assert not values(unit, key)


@pytest.mark.skipif(not SYSTEMD_ANALYZE, reason="needs systemd-analyze")
@pytest.mark.parametrize("spec", SPECIMENS.values(), ids=SPECIMENS)
def test_systemd_analyze_has_no_complaint(tmp_path: Path, spec: dict[str, Any]) -> None:
    unit = tmp_path / service_spec.file_name(spec, "systemd")
    unit.write_text(service_spec.render_systemd(spec, LAYOUT), encoding="utf-8")
    command = [str(SYSTEMD_ANALYZE), "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    missing = f"Command {LAYOUT['bin']}/gpurig is not executable: No such file or directory"
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() and missing not in line]
    assert complaints == []


def as_nobody() -> dict[str, Any]:
    # systemd refuses --test for root.
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def shell_unquoted(line: str) -> list[str]:
    """The words of a command line as systemd prints it: double quotes, and a backslash before what is special there."""

    def letter(hit: re.Match[str]) -> str:
        return "\t" if hit[1] == "t" else hit[1]

    words = re.findall(r'"((?:[^"\\]|\\.)*)"|([^ ]+)', line)
    return [bare or re.sub(r"\\(.)", letter, quoted) for quoted, bare in words]


def read_by_systemd(units: dict[str, str]) -> dict[str, dict[str, list[str]]]:
    """Each unit as the system's own systemd understands it: setting -> values, from `systemd --test`."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        for target in ("sysinit", "basic", "shutdown", "network-online"):
            (directory / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        wants = " ".join(units)
        (directory / "probe.target").write_text(f"[Unit]\nDefaultDependencies=no\nWants={wants}\n")
        for unit, text in units.items():
            (directory / unit).write_text(text, encoding="utf-8")
        done = subprocess.run(
            [str(SYSTEMD), "--test", "--system", "--unit=probe.target", "--log-level=warning"],
            capture_output=True,
            check=False,
            timeout=60,
            cwd="/",
            env={"SYSTEMD_UNIT_PATH": name, "XDG_RUNTIME_DIR": name, "HOME": "/", "LANG": "C.UTF-8"},
            **as_nobody(),
        )
    out = done.stdout.decode()
    if "-> Unit probe.target" not in out:
        pytest.skip(f"systemd --test does not work here: {done.stderr.decode()[-200:]}")
    complaints = [line for line in done.stderr.decode().splitlines() if name in line]
    assert complaints == []
    found: dict[str, dict[str, list[str]]] = {}
    for block in re.split(r"^\t?-> Unit ", out, flags=re.MULTILINE)[1:]:
        unit, _, rest = block.partition(":\n")
        seen = found.setdefault(unit, {})
        for line in rest.split("\n"):
            key, colon, value = line.lstrip("\t").partition(": ")
            if colon:
                seen.setdefault(key, []).append(value)
    return found


@pytest.mark.skipif(not SYSTEMD.exists(), reason="needs systemd")
def test_systemd_itself_reads_what_is_meant() -> None:
    read = read_by_systemd(
        {service_spec.file_name(s, "systemd"): service_spec.render_systemd(s, LAYOUT) for s in SPECIMENS.values()}
    )
    odd = read["gpurig-odd.service"]
    assert odd["Description"] == [ODD["description"]]
    assert odd["WorkingDirectory"] == [ODD["working_dir"]]
    assert odd["Environment"] == [f"{key}={value}" for key, value in sorted(ODD["environment"].items())]
    assert odd["ReadWritePaths"] == [f"{ODD['read_write_paths'][0]} {LAYOUT['run']}"]
    chat = read["gpurig-chat.service"]
    for key, value in {
        "Type": "exec",
        "Restart": "always",
        "RestartSec": "10s",
        "TimeoutStartSec": "15min",
        "TimeoutStopSec": "45s",
        "KillMode": "mixed",
        "UMask": "0077",
        "PrivateTmp": "yes",
        "PrivateDevices": "no",
        "ProtectClock": "no",
        "ProtectHome": "read-only",
        "ProtectSystem": "strict",
        "MemoryDenyWriteExecute": "no",
        "DevicePolicy": "auto",
        "LimitNOFILE": "65535",
        "User": "gpurig",
        "Group": "gpurig",
    }.items():
        assert chat[key] == [value], key
    assert [line for line in chat["Conflicts"] if "gpurig" in line] == ["gpurig-training.service (origin-file)"]
    assert [line for line in chat["Before"] if "gpurig" in line] == ["gpurig-open-webui.service (origin-file)"]
    for unit in ("gpurig-gpu-power.service", "network-online.target"):
        assert any(line.startswith(f"{unit} (origin-file") for line in chat["After"])
    power = read["gpurig-gpu-power.service"]
    assert (power["Type"], power["RemainAfterExit"], power["Restart"]) == (["oneshot"], ["no"], ["no"])
    for unit in ("suspend.target", "suspend-then-hibernate.target", "nvidia-persistenced.service"):
        assert f"{unit} (origin-file)" in power["After"]
    assert power["CapabilityBoundingSet"] == ["cap_sys_admin"]


@pytest.mark.skipif(not SYSTEMD.exists(), reason="needs systemd")
@settings(deadline=None, max_examples=12)
@given(argvs=st.lists(ARGVS, min_size=1, max_size=12), environment=ENVIRONMENTS, place=NAMES)
def test_systemd_itself_starts_exactly_the_argv(
    argvs: list[list[str]], environment: dict[str, str], place: str
) -> None:
    specs = {
        f"gpurig-n{number}.service": small(
            name=f"n{number}", argv=argv, environment=environment, working_dir=f"/{place}", secrets_file=f"/{place}"
        )
        for number, argv in enumerate(argvs)
    }
    read = read_by_systemd({name: service_spec.render_systemd(spec, LAYOUT) for name, spec in specs.items()})
    for name, spec in specs.items():
        [line] = read[name]["Command Line"]
        words = shell_unquoted(line)
        assert [words[0], *variables_resolved(words[1:], CREDENTIALS)] == expected_systemd_argv(spec, LAYOUT["bin"])
        assert read[name]["WorkingDirectory"] == [f"/{place}"]
        assert read[name].get("Environment", []) == [f"{key}={value}" for key, value in sorted(environment.items())]


# --- the filters


def test_filters_render_and_fail_in_words() -> None:
    filters = FilterModule().filters()
    assert filters["service_unit"](CHAT, "systemd", LAYOUT) == service_spec.render_systemd(CHAT, LAYOUT)
    assert filters["service_unit"](CHAT, manager="supervisord", layout=LAYOUT).startswith("; Written by")
    assert filters["service_record"](CHAT) == service_spec.to_json(CHAT)
    assert filters["service_file_name"](CHAT, "supervisord") == "chat.conf"
    assert filters["supervisord_conf"](LAYOUT) == service_spec.render_supervisord_conf(LAYOUT)
    with pytest.raises(AnsibleFilterError, match="unknown key"):
        filters["service_record"](small(colour="red"))


def test_filters_in_a_real_play(tmp_path: Path) -> None:
    """With the values that Ansible hands over: lazy containers, and texts that carry their origin."""
    filters = {
        "unit": "{{ spec | gpurig.llm.service_unit('systemd', paths) }}",
        "record": "{{ spec | gpurig.llm.service_record }}",
        "file": "{{ spec | gpurig.llm.service_file_name('supervisord') }}",
        "conf": "{{ paths | gpurig.llm.supervisord_conf }}",
    }
    known = {"port": 8000, "spec": {**CHAT, "argv": ["/bin/x", "{{ port | string }}"]}, "paths": LAYOUT}
    (tmp_path / "known.json").write_text(json.dumps(known), encoding="utf-8")
    arguments = json.dumps({"msg": filters})
    command = [sys.executable, "-m", "ansible.cli.adhoc", "localhost", "-c", "local", "-m", "debug", "-a", arguments]
    done = subprocess.run(
        [*command, "-e", f"@{tmp_path}/known.json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_LOCALHOST_WARNING": "false"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plain = {**CHAT, "argv": ["/bin/x", "8000"]}
    assert json.loads(done.stdout.partition("=>")[2])["msg"] == {
        "unit": service_spec.render_systemd(plain, LAYOUT),
        "record": service_spec.to_json(plain),
        "file": "chat.conf",
        "conf": service_spec.render_supervisord_conf(LAYOUT),
    }


@pytest.mark.parametrize("name", ["service_unit", "service_record", "service_file_name", "supervisord_conf"])
def test_every_filter_is_documented(name: str) -> None:
    from ansible.parsing.dataloader import DataLoader

    path = Path(__file__).parents[2] / "plugins" / "filter" / f"{name}.yml"
    text = DataLoader().load(path.read_text(encoding="utf-8"))
    assert text["DOCUMENTATION"]["name"] == name
    assert text["EXAMPLES"]
    assert text["RETURN"]["_value"]["type"] == "str"


def test_documented_keys_and_defaults_are_the_real_ones() -> None:
    from ansible.parsing.dataloader import DataLoader

    path = Path(__file__).parents[2] / "plugins" / "filter" / "service_unit.yml"
    options = DataLoader().load(path.read_text(encoding="utf-8"))["DOCUMENTATION"]["options"]["_input"]["suboptions"]
    real = service_spec.normalize(small())
    assert sorted(options) == sorted(real)
    restart = {key: entry["default"] for key, entry in options["restart"]["suboptions"].items()}
    documented = {key: entry["default"] for key, entry in options.items() if key not in {"name", "argv"}}
    assert documented | {"restart": restart} == {key: real[key] for key in documented}


def test_a_folder_in_memory_is_had_by_whoever_starts_it() -> None:
    spec = {"name": "page", "argv": ["/bin/true"], "memory_dir": "/dev/shm/page"}
    option = "exec --name page --memory-dir /dev/shm/page"
    assert option in service_spec.render_systemd(spec, LAYOUT)
    assert option in service_spec.render_supervisord(spec, LAYOUT)
    assert any("PrivateTmp" in line for line in rendering_problems({**spec, "memory_dir": "/tmp/page"}))


def rendering_problems(spec: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(service_spec.SpecError) as caught:
        service_spec.render_systemd(spec, LAYOUT)
    return caught.value.problems
