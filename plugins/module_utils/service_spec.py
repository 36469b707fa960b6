# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One description of a service, and its two renderings: a systemd unit and a supervisord program. (pure)

The command is the same in both, the host tool: `<bin>/gpurig exec --name NAME ... -- argv`. Secrets reach a service by
file only, so no rendering can show one.

Not rendered, because it is for whoever reads the record (`to_json`): health_url, inputs, labels. What supervisord has
no word for is left to the same readers: before, after, after_units, conflicts, again_after, group, capabilities,
stop_exits.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import urlsplit

MANAGERS = ("systemd", "supervisord")

BUDGET_SPENT_EXIT = 78
"""Exit code of `gpurig exec` when its restart budget is spent; the only one after which supervisord stays quiet."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
# `supervisorctl stop all` means every program, and supervisord's own log is <log>/supervisord.log.
_RESERVED_NAMES = frozenset({"all", "supervisord"})
_GPU_ROLE = re.compile(r"[^\s-]\S{0,63}")
_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?|[0-9]+")
_UNIT = re.compile(r"[A-Za-z0-9:_.@-]{1,200}\.(?:service|socket|target|mount|path)")
_CAPABILITY = re.compile(r"CAP_[A-Z_]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_VARIABLE = re.compile(r"(?:.*_)?(?:TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|SECRET_KEY|ACCESS_KEY|PRIVATE_KEY)")
_SECRET_FLAG = re.compile(r"--(?:api[-_]key|hf[-_]token|token|password|secret)(?:=.*)?")
# HF_HUB_DISABLE_IMPLICIT_TOKEN=1 is a switch and not a token.
_SWITCH_VALUES = frozenset({"", "0", "1", "true", "false", "yes", "no", "on", "off"})

# systemd gives the unit a /tmp and a /var/tmp of its own (PrivateTmp=), in which nothing of the host's exists.
_PRIVATE_TMP = ("/tmp", "/var/tmp")  # noqa: S108  (named to be refused)

# systemd.special(7): each target is reached when the machine runs again, as it is ordered after the sleep itself.
# nvidia-persistenced holds the driver loaded, so whoever loads it anew stops and starts that service; the device is the
# kernel module, which systemd sees where a rule of udev tags it (role gpu_power).
_AGAIN_AFTER: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "resume": ("suspend.target", "hibernate.target", "hybrid-sleep.target", "suspend-then-hibernate.target"),
        "gpu_driver": ("nvidia-persistenced.service", "sys-module-nvidia.device"),
    }
)

_HEADER = "Written by the role gpurig.llm.service. The next run writes it again: changes made here are lost."

_HARDENING = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    # Not yes: that would hide /home and /root, where a root directory of ours may lie.
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "RestrictSUIDSGID=yes",
    "RestrictRealtime=yes",
    "RestrictNamespaces=yes",
    "LockPersonality=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallArchitectures=native",
    "UMask=0077",
)
"""Left out on purpose: MemoryDenyWriteExecute= (torch compiles at run time), PrivateDevices= (hides /dev/nvidia*), and
ProtectClock=, which before systemd 253 (Ubuntu 22.04 has 249) adds a DeviceAllow= and so closes every other device
(systemd issue 18142); without CAP_SYS_TIME nobody sets the clock anyway."""


class SpecError(ValueError):
    """A spec or a layout that cannot be rendered. `problems` has one plain sentence for each fault found."""

    def __init__(self, subject: str, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n- ".join((f"{subject} cannot be used:", *self.problems)))


@dataclass(frozen=True)
class Restart:
    """At most `starts` starts in any `window_s` seconds, `delay_s` seconds between an end and the next start."""

    starts: int = 5
    window_s: int = 300
    delay_s: int = 5


@dataclass(frozen=True)
class ServiceSpec:
    """A checked spec, see `parse`. '' means: not wanted. A oneshot runs to its end and counts as up from then on.

    `memory_dir`: a folder on a tmpfs that is had at each start, for the service's user alone.
    `stop_exits`: exit codes beside 0 with which it ends when it is told to.
    `after_units`: units of the system itself, such as docker.service, that are started with it and before it.
    `again_after`: of resume and gpu_driver, events after which a oneshot runs again. supervisord knows no events.
    """

    name: str
    argv: tuple[str, ...]
    description: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets_file: str = ""
    gpu_role: str = ""
    user: str = ""
    group: str = ""
    working_dir: str = ""
    memory_dir: str = ""
    oneshot: bool = False
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    after_units: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    again_after: tuple[str, ...] = ()
    restart: Restart = Restart()
    start_timeout_s: int = 600
    stop_timeout_s: int = 60
    stop_exits: tuple[int, ...] = ()
    health_url: str = ""
    log_dir: str = ""
    inputs: tuple[str, ...] = ()
    read_write_paths: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


# --- checks: each takes (where, value, problems), adds a sentence for each fault and returns the clean value ---

_T = TypeVar("_T")
_Check = Callable[[str, object, list[str]], _T]


def _bad_letter(letter: str) -> bool:
    """Whether systemd or supervisord would refuse, split or lose the letter.

    Control characters other than TAB (systemd.exec(5), Environment=; line ends are what both files are split at),
    surrogates and Unicode's noncharacters (systemd ignores a line that holds one: src/basic/utf8.c, unichar_is_valid).
    """
    code = ord(letter)
    control = (code < 0x20 and letter != "\t") or 0x7F <= code <= 0x9F
    return control or 0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE


def _found(value: object) -> str:
    if value is None:
        return "nothing"
    for kind, word in ((str, "text"), (Mapping, "a mapping"), ((list, tuple), "a list")):
        if isinstance(value, kind):
            return word
    return f"{'the number ' if isinstance(value, (int, float)) and not isinstance(value, bool) else ''}{value!r}"


def _text(where: str, value: object, problems: list[str]) -> str:
    if not isinstance(value, str):
        hint = f", as in '{value}' (in a template: | string)" if isinstance(value, (int, float)) else ""
        problems.append(f"{where}: is {_found(value)}; needed: text{hint}")
        return ""
    bad = next((number for number, letter in enumerate(value) if _bad_letter(letter)), None)
    if bad is not None:
        problems.append(
            f"{where}: character {bad + 1} is {value[bad]!a}; needed: one line of plain text. "
            "Put such text into a file and name the file"
        )
        return ""
    return str(value)


def _description(where: str, value: object, problems: list[str]) -> str:
    text = _text(where, value, problems).strip()
    if text.endswith("\\"):
        problems.append(f"{where}: ends with a backslash, which continues the line in a unit file; remove it")
    return text


def _matching(pattern: re.Pattern[str], needed: str) -> _Check[str]:
    def check(where: str, value: object, problems: list[str]) -> str:
        text = _text(where, value, problems)
        if text and not pattern.fullmatch(text):
            problems.append(f"{where}: is {text!r}; needed: {needed}")
        return text

    return check


_matches_name = _matching(_NAME, "a to z, 0 to 9 and '-', not first, at most 41 of them")


def _name(where: str, value: object, problems: list[str]) -> str:
    text = _matches_name(where, value, problems)
    if text in _RESERVED_NAMES:
        problems.append(f"{where}: {text!r} means something else to supervisord; choose another name")
    return text


def _path(where: str, value: object, problems: list[str]) -> str:
    """An absolute, normal path. Neither systemd nor supervisord has quotes for one that ends with a blank or `\\`."""
    text = _text(where, value, problems)
    if text and (not text.startswith("/") or text.startswith("//") or posixpath.normpath(text) != text):
        problems.append(f"{where}: is {text!r}; needed: an absolute path without '..', '.', '//' or a '/' at its end")
    elif text and (text[-1].isspace() or text[-1] == "\\"):
        problems.append(f"{where}: is {text!r}; needed: a path that does not end with a blank or a backslash")
    return text


def _list_of(check: _Check[_T], may_be_empty: bool = False) -> _Check[tuple[_T, ...]]:
    def check_list(where: str, value: object, problems: list[str]) -> tuple[_T, ...]:
        if not isinstance(value, (list, tuple)):
            problems.append(f"{where}: is {_found(value)}; needed: a list")
            return ()
        problems.extend(
            f"{where}[{number}]: is empty; leave it out"
            for number, item in enumerate(value)
            if item == "" and not may_be_empty
        )
        return tuple(check(f"{where}[{number}]", item, problems) for number, item in enumerate(value))

    return check_list


_words = _list_of(_text, may_be_empty=True)


def _argv(where: str, value: object, problems: list[str]) -> tuple[str, ...]:
    before = len(problems)
    words = _words(where, value, problems)
    if len(problems) > before:
        return ()
    if not words or not words[0]:
        problems.append(f"{where}: has no program; needed: a list that starts with the program's absolute path")
        return ()
    _path(f"{where}[0]", words[0], problems)
    problems.extend(
        f"{where}[{number}]: {word.partition('=')[0]} takes a secret, and everybody on the host sees a command line. "
        "Put the secret into secrets_file, or give the program a flag that names a file"
        for number, word in enumerate(words)
        if _SECRET_FLAG.fullmatch(word)
    )
    return words


def _texts_by_name(where: str, value: object, problems: list[str]) -> dict[str, str]:
    if not isinstance(value, Mapping):
        problems.append(f"{where}: is {_found(value)}; needed: a mapping of texts")
        return {}
    texts: dict[str, str] = {}
    for key in value:
        name = _text(f"{where}, the key {key!a}", key, problems)
        if name:
            texts[name] = _text(f"{where}.{name}", value[key], problems)
        elif key == "":
            problems.append(f"{where}: has an empty key")
    return dict(sorted(texts.items()))


def _environment(where: str, value: object, problems: list[str]) -> dict[str, str]:
    variables = _texts_by_name(where, value, problems)
    for name, text in variables.items():
        if not _VARIABLE.fullmatch(name):
            problems.append(f"{where}: {name!r} is no name for a variable; needed: letters, digits and '_'")
        elif _SECRET_VARIABLE.fullmatch(name.upper()) and text.lower() not in _SWITCH_VALUES:
            problems.append(
                f"{where}.{name}: looks like a secret; put it into secrets_file, which nobody else can read"
            )
    return variables


def _flag(where: str, value: object, problems: list[str]) -> bool:
    if not isinstance(value, bool):
        problems.append(f"{where}: is {_found(value)}; needed: true or false")
        return False
    return value


def _whole_from(least: int) -> _Check[int]:
    def check(where: str, value: object, problems: list[str]) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(f"{where}: is {_found(value)}; needed: a whole number, {least} or more")
            return least
        return int(value)

    return check


_RESTART_CHECKS: Mapping[str, _Check[object]] = MappingProxyType(
    {"starts": _whole_from(1), "window_s": _whole_from(1), "delay_s": _whole_from(0)}
)


def _restart(where: str, value: object, problems: list[str]) -> Restart:
    if not isinstance(value, Mapping):
        problems.append(f"{where}: is {_found(value)}; needed: a mapping of {', '.join(_RESTART_CHECKS)}")
        return Restart()
    before = len(problems)
    numbers = _checked(value, _RESTART_CHECKS, f"{where}.", problems)
    restart = dataclasses.replace(Restart(), **numbers)  # type: ignore[arg-type]
    if len(problems) == before and restart.starts * restart.delay_s >= restart.window_s:
        problems.append(
            f"{where}: {restart.starts} starts {restart.delay_s} s apart take {restart.window_s} s or more, "
            "so the budget would never be spent; needed: starts * delay_s below window_s"
        )
    return restart


def _event(where: str, value: object, problems: list[str]) -> str:
    text = _text(where, value, problems)
    if text and text not in _AGAIN_AFTER:
        problems.append(f"{where}: is {text!r}; needed: one of {', '.join(_AGAIN_AFTER)}")
    return text


def _url(where: str, value: object, problems: list[str]) -> str:
    text = _text(where, value, problems)
    if not text:
        return text
    needed = "needed: http:// or https:// with host and path, without blanks, user and password"
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"\s", text):
        # Not shown: what stands before an '@' may be a password.
        problems.append(f"{where}: is no address that can be asked; {needed}")
    return text


_names = _list_of(_name)
_paths = _list_of(_path)

_CHECKS: Mapping[str, _Check[object]] = MappingProxyType(
    {
        "name": _name,
        "argv": _argv,
        "description": _description,
        "environment": _environment,
        "secrets_file": _path,
        "gpu_role": _matching(_GPU_ROLE, "at most 64 characters without blanks, the first not '-'"),
        "user": _matching(_ACCOUNT, "the name or the number of a user"),
        "group": _matching(_ACCOUNT, "the name or the number of a group"),
        "working_dir": _path,
        "memory_dir": _path,
        "oneshot": _flag,
        "before": _names,
        "after": _names,
        "after_units": _list_of(_matching(_UNIT, "the whole name of a unit, such as docker.service")),
        "conflicts": _names,
        "again_after": _list_of(_event),
        "restart": _restart,
        "start_timeout_s": _whole_from(1),
        "stop_timeout_s": _whole_from(1),
        "stop_exits": _list_of(_whole_from(1)),
        "health_url": _url,
        "log_dir": _path,
        "inputs": _paths,
        "read_write_paths": _paths,
        "capabilities": _list_of(_matching(_CAPABILITY, "a name from capabilities(7), such as CAP_SYS_ADMIN")),
        "labels": _texts_by_name,
    }
)


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def _checked(
    raw: Mapping[str, object], checks: Mapping[str, _Check[object]], prefix: str, problems: list[str]
) -> dict[str, object]:
    """The checked value of each key that is written; a key without a value counts as not written."""
    problems.extend(f"{prefix}{key}: unknown key{_did_you_mean(key, checks)}" for key in raw if key not in checks)
    return {
        key: check(f"{prefix}{key}", raw[key], problems)
        for key, check in checks.items()
        if key in raw and raw[key] is not None
    }


def _subject(name: object) -> str:
    return f"the spec of service {name!a}" if isinstance(name, str) and name else "the service spec"


def _check_mapping(spec: object) -> None:
    if not isinstance(spec, Mapping):
        raise SpecError("the service spec", [f"it is {_found(spec)}; needed: a mapping"])


def parse(raw: Mapping[str, object]) -> ServiceSpec:
    """Check a spec and fill in the defaults. Keys and their defaults are the fields of `ServiceSpec`.

    Paths are absolute and normal, durations are whole seconds, before/after/conflicts name other services of ours.
    Raises SpecError with every fault at once: unknown keys, wrong types, line breaks, secrets in the open ...
    """
    _check_mapping(raw)
    problems = [
        f"{key}: missing; every service needs {needed}"
        for key, needed in (("name", "a name"), ("argv", "its command as a list"))
        if raw.get(key) in (None, "")
    ]
    values = _checked(raw, _CHECKS, "", problems)
    problems.extend(
        f"{key}: names the service itself" for key in ("before", "after", "conflicts") if _lists_itself(values, key)
    )
    if values.get("again_after") and not values.get("oneshot"):
        problems.append("again_after: is for a oneshot; what keeps running is restarted by its manager")
    if problems:
        raise SpecError(_subject(raw.get("name")), problems)
    return ServiceSpec(**values)  # type: ignore[arg-type]


def _lists_itself(values: Mapping[str, object], key: str) -> bool:
    names = values.get(key, ())
    return isinstance(names, tuple) and values.get("name") in names


def normalize(spec: Mapping[str, object]) -> dict[str, object]:
    """The spec with every key, defaults filled in, in plain dictionaries and lists. Raises SpecError."""
    plain = dataclasses.asdict(parse(spec))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def to_json(spec: Mapping[str, object]) -> str:
    """The record `<services>/<name>.json`: the same text for the same service, ending with a newline.

    `normalize(json.loads(text))` gives the service again. Raises SpecError.
    """
    return json.dumps(normalize(spec), indent=2, sort_keys=True) + "\n"


def unit_name(name: str) -> str:
    """The systemd unit of our service `name`."""
    return f"gpurig-{name}.service"


def file_name(spec: Mapping[str, object], manager: str) -> str:
    """The name of the file that `manager` reads. Only the spec's `name` is looked at, so removal needs nothing else.

    Raises SpecError for a bad name or an unknown manager.
    """
    _check_mapping(spec)
    problems: list[str] = []
    name = _name("name", spec.get("name"), problems)
    if name == "" and not problems:
        problems.append("name: is empty; every service needs a name")
    _check_manager(manager, problems)
    if problems:
        raise SpecError(_subject(spec.get("name")), problems)
    return unit_name(name) if manager == "systemd" else f"{name}.conf"


def render(spec: Mapping[str, object], manager: str, layout: Mapping[str, str]) -> str:
    """The text of `file_name(spec, manager)`. Raises SpecError."""
    problems: list[str] = []
    _check_manager(manager, problems)
    if problems:
        raise SpecError("the service manager", problems)
    return render_systemd(spec, layout) if manager == "systemd" else render_supervisord(spec, layout)


def _check_manager(manager: str, problems: list[str]) -> None:
    if manager not in MANAGERS:
        problems.append(f"manager: {manager!r} is unknown{_did_you_mean(manager, MANAGERS)}")


def _layout_paths(layout: Mapping[str, str], *keys: str) -> list[str]:
    """The layout's paths of these names, checked like the paths of a spec. Raises SpecError."""
    if not isinstance(layout, Mapping):
        raise SpecError("the host's layout", [f"it is {_found(layout)}; needed: the mapping rig.paths of rig_facts"])
    problems = [f"paths.{key}: missing; rig_facts returns it in rig.paths" for key in keys if not layout.get(key)]
    paths = [_path(f"paths.{key}", layout[key], problems) for key in keys if layout.get(key)]
    if problems:
        raise SpecError("the host's layout", problems)
    return paths


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


# --- systemd ---


def quote_systemd(word: str) -> str:
    """One word of a unit file's value that systemd splits into words (Environment=, ReadWritePaths=, ExecStart=).

    systemd.syntax(7), Quoting: a word in double quotes may hold anything, where `\\` is written `\\\\` and `"` is
    written `\\"`; these two escapes are read the same whether the setting knows C escapes or not
    (src/basic/extract-word.c). systemd.unit(5), Specifiers: `%` is written `%%`. A quoted `;` is never the separator of
    two commands (systemd.service(5)), and a line that ends with `"` is never continued on the next.
    """
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return text if re.fullmatch(r"[A-Za-z0-9_@%+=:,./$-]+", text) else f'"{text}"'


def quote_systemd_argument(word: str) -> str:
    """One argument in ExecStart=, not the program itself: `quote_systemd`, and `$` is written `$$`.

    systemd.service(5), Command lines: "To pass a literal dollar sign, use $$". Single quotes do not protect from it.
    """
    return quote_systemd(word.replace("$", "$$"))


def _raw_systemd(text: str) -> str:
    """A value that systemd takes whole (Description=, WorkingDirectory=, LoadCredential=): only `%` is special."""
    return text.replace("%", "%%")


def render_systemd(spec: Mapping[str, object], layout: Mapping[str, str]) -> str:
    """The unit `gpurig-<name>.service`, for systemd 249 and later. `layout` needs the keys bin and run.

    Raises SpecError for a bad spec, and for a place that the unit's own protections would hide from the service.
    """
    service = parse(spec)
    bin_dir, run_dir = _layout_paths(layout, "bin", "run")
    _check_systemd_places(service, bin_dir, run_dir)
    return (
        "\n\n".join(
            "\n".join(lines)
            for lines in (
                _unit_section(service),
                _service_section(service, bin_dir, run_dir),
                ["[Install]", " ".join(["WantedBy=multi-user.target", *_events(service)])],
            )
        )
        + "\n"
    )


def _check_systemd_places(service: ServiceSpec, bin_dir: str, run_dir: str) -> None:
    places = [("paths.bin", bin_dir), ("paths.run", run_dir), ("argv[0]", service.argv[0])]
    places += [("working_dir", service.working_dir), ("memory_dir", service.memory_dir)]
    places += [(f"read_write_paths[{number}]", path) for number, path in enumerate(service.read_write_paths)]
    problems = [
        f"{where}: {path!r} lies in {tmp}, and systemd gives the service another {tmp} (PrivateTmp=). "
        "Choose a place elsewhere (rig_root)"
        for where, path in places
        for tmp in _PRIVATE_TMP
        if _is_below(path, tmp)
    ]
    if re.search(r"[\"'\\]", bin_dir):
        # src/shared/string-util: string_is_safe(), applied to the program of ExecStart= after all unquoting.
        problems.append(f"paths.bin: {bin_dir!r} has a quote or a backslash, which systemd takes in no program's path")
    if problems:
        raise SpecError(_subject(service.name), problems)


def _unit_section(service: ServiceSpec) -> list[str]:
    lines = [
        f"# {_HEADER}",
        "[Unit]",
        f"Description={_raw_systemd(service.description or f'gpurig service {service.name}')}",
        " ".join(["Wants=network-online.target", *service.after_units]),
        " ".join(
            ["After=network-online.target", *service.after_units, *map(unit_name, service.after), *_events(service)]
        ),
    ]
    if service.before:
        lines.append("Before=" + " ".join(map(unit_name, service.before)))
    if service.conflicts:
        lines.append("Conflicts=" + " ".join(map(unit_name, service.conflicts)))
    if not service.oneshot:
        lines.append(f"StartLimitIntervalSec={service.restart.window_s}")
        lines.append(f"StartLimitBurst={service.restart.starts}")
    return lines


def _events(service: ServiceSpec) -> list[str]:
    """The units after whose start a oneshot runs again; one that is not installed does no harm."""
    return [unit for event in service.again_after for unit in _AGAIN_AFTER[event]]


def _service_section(service: ServiceSpec, bin_dir: str, run_dir: str) -> list[str]:
    lines = ["[Service]"]
    lines.append("Type=oneshot" if service.oneshot else "Type=exec")
    if service.oneshot and not service.again_after:
        # Without it only one that is to run again: systemd starts nothing that is still active.
        lines.append("RemainAfterExit=yes")
    if service.user:
        lines.append(f"User={service.user}")
    if service.group:
        lines.append(f"Group={service.group}")
    if service.working_dir:
        lines.append(f"WorkingDirectory={_raw_systemd(service.working_dir)}")
    lines += [f"Environment={quote_systemd(f'{key}={value}')}" for key, value in service.environment.items()]
    if service.secrets_file:
        lines.append(f"LoadCredential=secrets:{_raw_systemd(service.secrets_file)}")
    lines.append(f"ExecStart={_systemd_command(service, bin_dir)}")
    if not service.oneshot:
        # Not on-failure: an engine whose worker died ends with exit code 0.
        # 78: what `gpurig exec` ends with when starting again cannot help (a missing card, a broken secrets file).
        lines += ["Restart=always", "RestartPreventExitStatus=78", f"RestartSec={service.restart.delay_s}"]
    lines += [
        f"TimeoutStartSec={service.start_timeout_s}",
        f"TimeoutStopSec={service.stop_timeout_s}",
        "KillMode=mixed",
        "LimitNOFILE=65535",
    ]
    if service.stop_exits:
        lines.append("SuccessExitStatus=" + " ".join(map(str, service.stop_exits)))
    lines += _HARDENING
    lines.append("CapabilityBoundingSet=" + " ".join(service.capabilities))
    if service.capabilities and service.user not in {"", "root", "0"}:
        lines.append("AmbientCapabilities=" + " ".join(service.capabilities))
    writable = dict.fromkeys((*service.read_write_paths, run_dir))
    lines += [f"ReadWritePaths={quote_systemd(path)}" for path in writable]
    return lines


def _systemd_command(service: ServiceSpec, bin_dir: str) -> str:
    # The program's path is expanded for % but not for $ (systemd.service(5): it "may not be a variable").
    words = [quote_systemd(f"{bin_dir}/gpurig")]
    words += map(quote_systemd_argument, _exec_options(service))
    if service.secrets_file:
        # Not %d, which systemd 249 does not know yet (it came with 251).
        words += ["--secrets", "${CREDENTIALS_DIRECTORY}/secrets"]
    words.append("--")
    words += map(quote_systemd_argument, service.argv)
    return " ".join(words)


def _exec_options(service: ServiceSpec) -> list[str]:
    options = ["exec", "--name", service.name]
    if service.gpu_role:
        options += ["--gpu-role", service.gpu_role]
    if service.memory_dir:
        options += ["--memory-dir", service.memory_dir]
    return options


# --- supervisord ---

# Formats to nothing in every section that supervisord expands: `here` is known in all of them.
_NOTHING = "%(here).0s"


def quote_supervisord(text: str, expansions: int = 1) -> str:
    """A value in supervisord's files that reads back as `text`. Rules read from supervisor 4.3.0, options.py:

    - `%` is a Python format (`expand`), so it is doubled, once for each of the `expansions`: stdout_logfile is expanded
      twice, every other setting once;
    - `;` and `#` after a blank start a comment, within quotes too (`UnhosedConfigParser`, inline_comment_prefixes), and
      nothing escapes them: `%(here).0s`, a format that yields nothing, is put between;
    - `%(here)s` is replaced before any format is, even where its `%` is doubled (`expand_here`): the same is put there.
    """
    quoted = text.replace("%", "%" * 2**expansions)
    quoted = re.sub(r"(?<=\s)(?=[;#])", _NOTHING, quoted)
    return quoted.replace("%(here)s", f"%{_NOTHING}(here)s")


def quote_supervisord_command(argv: Iterable[str]) -> str:
    """The value of command= that starts exactly `argv`.

    supervisor 4.3.0, process.py, get_execv_args: after the format the value goes through `shlex.split`, the inverse of
    `shlex.join`. The format comes first, so its quoting goes on last.
    """
    return quote_supervisord(shlex.join(argv))


def render_supervisord(spec: Mapping[str, object], layout: Mapping[str, str]) -> str:
    """The program file `<name>.conf`. `layout` needs the keys bin and log.

    supervisord counts no restarts of a program that had come up, so `gpurig exec` keeps the budget and ends with
    BUDGET_SPENT_EXIT when it is spent. `user` is rendered when it is set; a supervisord that is not root can only
    start programs of its own user. Raises SpecError.
    """
    service = parse(spec)
    bin_dir, default_log_dir = _layout_paths(layout, "bin", "log")
    log_file = f"{service.log_dir or default_log_dir}/{service.name}.log"
    lines = [
        f"; {_HEADER}",
        f"[program:{service.name}]",
        f"command={quote_supervisord_command(_supervisord_argv(service, bin_dir))}",
    ]
    if service.working_dir:
        lines.append(f"directory={quote_supervisord(service.working_dir)}")
    if service.user:
        lines.append(f"user={service.user}")
    lines += [
        "umask=077",
        "autostart=true",
        # 0 is no expected exit code of a server: an engine whose worker died ends with it and has to come back.
        *(["autorestart=false"] if service.oneshot else ["autorestart=unexpected", f"exitcodes={BUDGET_SPENT_EXIT}"]),
        "startsecs=0",
        "startretries=0",
        f"stopwaitsecs={service.stop_timeout_s}",
        "stopasgroup=true",
        "killasgroup=true",
        "redirect_stderr=true",
        f"stdout_logfile={quote_supervisord(log_file, expansions=2)}",
        "stdout_logfile_maxbytes=10MB",
        "stdout_logfile_backups=3",
    ]
    return "\n".join(lines) + "\n"


def _supervisord_argv(service: ServiceSpec, bin_dir: str) -> list[str]:
    argv = [f"{bin_dir}/gpurig", *_exec_options(service)]
    if service.secrets_file:
        argv += ["--secrets", service.secrets_file]
    if not service.oneshot:
        argv += ["--restart-budget", f"{service.restart.starts}/{service.restart.window_s}"]
        argv += ["--restart-delay", str(service.restart.delay_s)]
    for key, value in service.environment.items():
        # environment= has no escape for a quote (supervisor 4.3.0, datatypes.py, dict_of_key_value_pairs).
        argv += ["--env", f"{key}={value}"]
    return [*argv, "--", *service.argv]


def render_supervisord_conf(layout: Mapping[str, str]) -> str:
    """supervisord's own configuration, the file `supervisor_conf`.

    `layout` needs the keys log, run, supervisor_conf, supervisor_programs and supervisor_socket. The directories must
    exist before supervisord starts. Raises SpecError for a missing key and for a place that the include cannot name.
    """
    log, run, conf, programs, socket = _layout_paths(
        layout, "log", "run", "supervisor_conf", "supervisor_programs", "supervisor_socket"
    )
    lines = [
        f"; {_HEADER}",
        "[unix_http_server]",
        f"file={quote_supervisord(socket)}",
        "chmod=0700",
        "",
        "[supervisord]",
        f"logfile={quote_supervisord(f'{log}/supervisord.log')}",
        "logfile_maxbytes=5MB",
        "logfile_backups=3",
        f"pidfile={quote_supervisord(f'{run}/supervisord.pid')}",
        f"childlogdir={quote_supervisord(log)}",
        "nodaemon=false",
        "umask=077",
        # Floors, not wishes: below them supervisord does not start, and no limit has to be raised for it to run.
        "minfds=256",
        "minprocs=1",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "",
        "[supervisorctl]",
        f"serverurl={quote_supervisord(f'unix://{socket}')}",
        "",
        "[include]",
        f"files={_include(conf, programs)}",
    ]
    return "\n".join(lines) + "\n"


def _include(conf: str, programs: str) -> str:
    """The pattern of the program files, relative to the configuration file.

    supervisor 4.3.0, options.py, read_config: the value is expanded, split at blanks, put behind the configuration
    file's directory unless it is absolute, and globbed. So that directory may hold blanks but nothing that is special
    to glob, and the rest neither.
    """
    relative = posixpath.relpath(programs, posixpath.dirname(conf))
    problems = [
        f"{where}: {path!r} has {what} in it, and supervisord's include cannot name that. Choose another rig_root"
        for where, path, pattern, what in (
            ("paths.supervisor_conf", conf, r"[\[*?]", "one of [*?"),
            ("paths.supervisor_programs", relative, r"[\[*?\s]", "a blank or one of [*?"),
        )
        if re.search(pattern, path)
    ]
    if problems:
        raise SpecError("the host's layout", problems)
    return quote_supervisord(f"{relative}/*.conf")
