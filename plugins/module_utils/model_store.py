# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models on disk: one directory each, a record of what was verified, and the staging area. (outside)

<models>/<key>/                 the files, and .gpurig.json, the record, written last
<models>/.staging/<key>/        what is being fetched; renamed to <models>/<key> when complete
<models>/.staging/<key>.old/    what was there before, for the moment of the exchange
<models>/.staging/<key>.lock    flock of the run that is at work; .progress and .log of that run
<models>/.earlier/<key>/        the model of another revision that was replaced, until its services are healthy anew
<models>/.replaced/<key>-<n>/   files that were in the way and that we had not put there: kept, never deleted
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import hashlib
import json
import os
import pwd
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .model_files import (
    FIRST_BYTES,
    ModelEntry,
    Verdict,
    head_bytes,
    heads_wanted,
    judge,
)

RECORD = ".gpurig.json"
SCHEMA = 1
CHUNK_BYTES = 4 * 1024 * 1024
SPACE_MARGIN_BYTES = 64 * 1024 * 1024
PROGRESS_EVERY_S = 2.0
PUT_BACK = "{key}: put back after an interrupted exchange"


class ModelStoreError(Exception):
    """Something about the models directory itself stands in the way; the message says what and what to do."""


class NoSpaceError(ModelStoreError):
    """Too little free disk space for what is to be fetched."""


class FormatError(ModelStoreError):
    """The files are there, and are not a complete model of the declared format."""


class UnreadableError(ModelStoreError):
    """The user that the engine runs as cannot read the model."""


class NoReaderError(UnreadableError):
    """The user that the engine runs as does not exist."""


@dataclass(frozen=True)
class Places:
    """Every path that belongs to one model."""

    models: Path
    key: str

    @property
    def home(self) -> Path:
        return self.models / self.key

    @property
    def record(self) -> Path:
        return self.home / RECORD

    @property
    def staging_area(self) -> Path:
        return self.models / ".staging"

    @property
    def staging(self) -> Path:
        return self.staging_area / self.key

    @property
    def old(self) -> Path:
        return self.staging_area / f"{self.key}.old"

    @property
    def earlier(self) -> Path:
        return self.models / ".earlier" / self.key

    @property
    def lock(self) -> Path:
        return self.staging_area / f"{self.key}.lock"

    @property
    def client_home(self) -> Path:
        """Where a download client keeps its own files while it runs."""
        return self.staging_area / f"{self.key}.hf"

    @property
    def progress(self) -> Path:
        return self.staging_area / f"{self.key}.progress"

    @property
    def log(self) -> Path:
        return self.staging_area / f"{self.key}.log"


@dataclass(frozen=True)
class FileRecord:
    """One verified file: size in bytes, sha256 in hex, and the modification time it had then."""

    size: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Record:
    """What `.gpurig.json` holds. `main` is what an engine gets, relative to `root`.

    `root` is the directory the files are in. It is written only for source local (a user's own directory); otherwise
    it is where the record itself lies, so that a models directory may be moved. `fetched_bytes` is what was downloaded.
    """

    source: Mapping[str, Any]
    format: str
    root: str
    main: str
    files: Mapping[str, FileRecord]
    fetched_bytes: int

    @property
    def path(self) -> str:
        """What an engine gets: the absolute path of the .gguf file or of the directory."""
        return self.root if self.main == "." else f"{self.root}/{self.main}"

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def to_json(self) -> str:
        files = {
            path: {"size": f.size, "sha256": f.sha256, "mtime_ns": f.mtime_ns} for path, f in sorted(self.files.items())
        }
        data = {
            "schema": SCHEMA,
            "source": dict(self.source),
            "format": self.format,
            **({"root": self.root} if self.source["kind"] == "local" else {}),
            "main": self.main,
            "fetched_bytes": self.fetched_bytes,
            "files": files,
        }
        return json.dumps(data, indent=1) + "\n"


@dataclass(frozen=True)
class State:
    """What is on disk against what the catalogue says.

    status: absent; complete; damaged (this very model, but bytes or record are not as verified); other (another
    source, revision or format is there). `differences` name each thing in words. `intact` are the files whose bytes
    are as recorded. `record` is the valid record; when only modification times changed, the status is complete,
    `touched` is true, and `record` has the new times and is to be written.
    """

    status: str
    differences: tuple[str, ...] = ()
    intact: tuple[str, ...] = ()
    record: Record | None = None
    touched: bool = False


# --- small tools ---


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers and crashes see the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def listing_of(root: Path, only: str = "") -> dict[str, int]:
    """Relative paths and sizes in bytes of all files below `root`; links to files count as files.

    With `only`, the name of one file directly in `root`: that file, and the parts it belongs to if it is split.
    """
    sizes: dict[str, int] = {}
    for directory, _names, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            with contextlib.suppress(OSError):  # a dangling link, or gone since
                information = path.stat()
                if stat.S_ISREG(information.st_mode):
                    sizes[path.relative_to(root).as_posix()] = information.st_size
        if only:
            break
    if only:
        stem = only.rsplit("-of-", 1)[0].rsplit("-", 1)[0] if "-of-" in only else only
        tail = only.rsplit("-of-", 1)[1] if "-of-" in only else ""
        sizes = {path: size for path, size in sizes.items() if path == only or _is_part(path, stem, tail)}
    sizes.pop(RECORD, None)
    return sizes


def _is_part(path: str, stem: str, tail: str) -> bool:
    middle = path[len(stem) + 1 : -len(tail) - 4] if tail else ""
    return bool(tail) and path == f"{stem}-{middle}-of-{tail}" and len(middle) == 5 and middle.isdigit()


def read_heads(root: Path, model_format: str, listing: Mapping[str, int]) -> dict[str, bytes]:
    """The first bytes of every file that `judge` wants to see. Raises OSError when one cannot be read."""
    heads: dict[str, bytes] = {}
    for path in heads_wanted(model_format, listing):
        with (root / path).open("rb") as stream:
            first = stream.read(FIRST_BYTES)
            heads[path] = first + stream.read(max(0, head_bytes(path, first, listing[path]) - len(first)))
    return heads


def judge_directory(root: Path, model_format: str, only: str = "") -> Verdict:
    """Whether the files below `root` (or the one file `only` with its parts) are a complete model."""
    listing = listing_of(root, only)
    return judge(model_format, listing, read_heads(root, model_format, listing))


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda _count: None) -> tuple[str, str]:
    """(sha256, Git blob sha1) of a file in hex, in one pass; `on_bytes` hears how many bytes each step read."""
    sha256 = hashlib.sha256()
    git_sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha256.update(chunk)
            git_sha1.update(chunk)
            on_bytes(len(chunk))
    return sha256.hexdigest(), git_sha1.hexdigest()


def record_file(path: Path, sha256: str) -> FileRecord:
    """The record of a file whose content has just been hashed."""
    information = path.stat()
    return FileRecord(information.st_size, sha256, information.st_mtime_ns)


def require_space(place: Path, need_bytes: int, what: str) -> None:
    """Raise NoSpaceError unless the file system of `place` (or its nearest existing parent) has `need_bytes` free."""
    existing = place
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < need_bytes + SPACE_MARGIN_BYTES:
        raise NoSpaceError(
            f"{what} needs {megabytes(need_bytes + SPACE_MARGIN_BYTES)} in {place}, {megabytes(free)} are free: "
            "free space there, or point models_dir at a larger disk"
        )


def megabytes(count: int) -> str:
    """A size for people: '480 kB', '98 MB', '1.5 GB' (decimal, as disks and hubs count)."""
    if count >= 10**10:
        return f"{count / 10**9:.0f} GB"
    if count >= 10**9:
        return f"{count / 10**9:.1f} GB"
    if count >= 10**6:
        return f"{count / 10**6:.0f} MB" if count >= 10**7 else f"{count / 10**6:.1f} MB"
    return f"{count / 10**3:.0f} kB"


def require_readable(path: Path, user: str | None) -> str | None:
    """Raise UnreadableError unless `user` (None: we ourselves) can read this file, or this directory's files.

    Asked of the kernel in a child process that becomes that user, which only root can do; otherwise the mode bits
    are not guessed at: the returned sentence says that nothing was checked.
    """
    if user is None or user == pwd.getpwuid(os.geteuid()).pw_name:
        refused = _unreadable(path)
        who = "this run"
    else:
        try:
            account = pwd.getpwnam(user)
        except KeyError:
            raise NoReaderError(f"user {user} does not exist on this host, and is to read {path}") from None
        if os.geteuid() != 0:
            return f"whether user {user} can read {path} was not checked: only root can ask"
        refused = _unreadable_for(path, account)
        who = f"user {user}"
    if refused:
        raise UnreadableError(
            f"{who} cannot read {refused}: give it read permission there (and x on every directory above)"
        )
    return None


def _unreadable(path: Path) -> str:
    """The first file that this process cannot open, or ''."""
    try:
        if path.is_dir():
            for name in sorted(listing_of(path)):
                with (path / name).open("rb"):
                    pass
            os.scandir(path).close()
        else:
            with path.open("rb"):
                pass
    except OSError as exc:
        return f"{exc.filename or path} ({exc.strerror})"
    return ""


def _unreadable_for(path: Path, account: pwd.struct_passwd) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = "?"
        try:
            groups = [group.gr_gid for group in grp.getgrall() if account.pw_name in group.gr_mem]
            os.setgroups(groups)
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            text = _unreadable(path)
        finally:
            os.write(writer, text.encode()[:4000])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read().decode(errors="replace")
    os.waitpid(child, 0)
    return answer


# --- the record, and what is on disk ---


def read_record(path: Path) -> Record:
    """Read `.gpurig.json`. Raises FileNotFoundError when it is not there, ValueError when it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']}, this version writes {SCHEMA}")
        files = {
            str(name): FileRecord(int(f["size"]), str(f["sha256"]), int(f["mtime_ns"]))
            for name, f in data["files"].items()
        }
        return Record(
            source=dict(data["source"]),
            format=str(data["format"]),
            root=str(data.get("root") or path.parent),
            main=str(data["main"]),
            files=files,
            fetched_bytes=int(data["fetched_bytes"]),
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as exc:
        raise ValueError(f"damaged: {exc!r}") from exc


def inspect(home: Path, entry: ModelEntry) -> State:
    """Compare one model's directory with its catalogue entry, without changing anything.

    Files are compared by size and modification time; only a file whose time alone changed is hashed again. Raises
    ModelStoreError when a link or a file of somebody's stands in the place of the directory.
    """
    if home.is_symlink() or (home.exists() and not home.is_dir()):
        raise ModelStoreError(
            f"{home} is {'a link' if home.is_symlink() else 'a file'} that gpurig did not make: move it away, or name "
            "what it holds as local.path of a model with another name"
        )
    if not home.is_dir():
        return State("absent", (f"{entry.name}: not on disk",))
    try:
        record = read_record(home / RECORD)
    except FileNotFoundError:
        if not listing_of(home):
            return State("absent", (f"{entry.name}: not on disk",))
        return State("damaged", (f"{RECORD}: missing, so nothing proves the files in {home}",))
    except ValueError as exc:
        return State("damaged", (f"{RECORD}: {exc}",))
    differences: list[str] = []
    status = "complete"
    if dict(record.source) != entry.identity():
        status = "other"
        differences.append(f"source: {_origin(record.source)} -> {_origin(entry.identity())}")
    elif record.format != entry.format:
        status = "other"
        differences.append(f"format: {record.format} -> {entry.format}")
    compared, renewed, intact, files = _compare(Path(record.root), record)
    if record.source["kind"] == "local" and not _points_at(home, record):
        compared.append(f"{link_place(home, record).name}: the link to {record.source['path']} is missing")
    if compared and status == "complete":
        status = "damaged"
    differences += compared + renewed
    return State(status, tuple(differences), intact, replace(record, files=files), bool(renewed))


def link_place(home: Path, record: Record) -> Path:
    """Where the link of a local model lies: its directory shows people what the record points at."""
    return home / (Path(str(record.source["path"])).name or "source")


def is_inside(path: Path, home: Path) -> bool:
    """Whether a user's own file or directory lies in the very directory that is named after the model."""
    return path == home or home in path.parents


def _points_at(home: Path, record: Record) -> bool:
    target, link = Path(str(record.source["path"])), link_place(home, record)
    return is_inside(target, home) or (link.is_symlink() and link.readlink() == target)


def _origin(source: Mapping[str, Any]) -> str:
    values = [str(value) for key, value in source.items() if key not in ("kind", "sha256", "files")]
    patterns = source.get("files")
    return " ".join([str(source.get("kind")), *values, *([f"files {', '.join(patterns)}"] if patterns else [])])


def _compare(root: Path, record: Record) -> tuple[list[str], list[str], tuple[str, ...], dict[str, FileRecord]]:
    differences: list[str] = []
    intact: list[str] = []
    renewed: list[str] = []
    files = dict(record.files)
    for name, expected in sorted(record.files.items()):
        path = root / name
        try:
            found = path.stat()
        except OSError:
            differences.append(f"{name}: deleted")
            continue
        if found.st_size < expected.size:
            differences.append(f"{name}: truncated, {found.st_size} of {expected.size} bytes")
        elif found.st_size > expected.size:
            differences.append(f"{name}: edited, {found.st_size} bytes instead of {expected.size}")
        elif found.st_mtime_ns == expected.mtime_ns:
            intact.append(name)
        else:
            sha256, _git_sha1 = hash_file(path)
            if sha256 == expected.sha256:
                intact.append(name)
                files[name] = FileRecord(expected.size, sha256, found.st_mtime_ns)
                # Worth a line and a new record: otherwise every later run would hash this file again.
                renewed.append(f"{name}: its modification time changed, its content is as verified")
            else:
                differences.append(f"{name}: edited, sha256 {sha256[:12]}... instead of {expected.sha256[:12]}...")
    return differences, renewed, tuple(intact), files


# --- one run at a time ---


@contextlib.contextmanager
def locked(places: Places, on_wait: Callable[[str], None] = lambda _text: None) -> Iterator[int]:
    """Hold the lock of one model and yield its file descriptor; waits for a run that is at work on the same model."""
    places.staging_area.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        waited = False
        while not _try_lock(descriptor):
            if not waited:
                on_wait(f"waiting for another run that fetches {places.key} (lock {places.lock})")
                waited = True
            time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Progress:
    """Writes a line for people to `<key>.progress` about every 2 s: 'fetching: 31 MB of 98 MB'.

    The file starts empty with each run and is removed when the run ends.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.clock = clock
        self.phase = ""
        self.total: int | None = None
        self.count = 0
        self._next = 0.0
        path.write_text("", encoding="utf-8")

    def start(self, phase: str, total: int | None) -> None:
        """A new phase begins; `total` bytes are to come, None when nobody knows."""
        self.phase, self.total, self.count = phase, total, 0
        self._write()

    def set(self, count: int) -> None:
        """The phase has come to `count` bytes."""
        self.count = count
        if self.due():
            self._write()

    def add(self, count: int) -> None:
        self.set(self.count + count)

    def due(self) -> bool:
        """Whether the next line is due (so that nobody counts bytes more often than needed)."""
        return self.clock() >= self._next

    def close(self) -> None:
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._next = self.clock() + PROGRESS_EVERY_S
        whole = f" of {megabytes(self.total)}" if self.total is not None else ""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{self.phase}: {megabytes(self.count)}{whole}\n")


# --- staging and the exchange ---


def interrupted(places: Places) -> bool:
    """Whether an earlier run was killed in the middle of the exchange, so that nothing is in place right now."""
    return places.old.is_dir() and not os.path.lexists(places.home)


def recover(places: Places) -> list[str]:
    """Undo or finish an exchange that was killed half-way; returns what was done, in words."""
    if interrupted(places):
        places.old.rename(places.home)
        return [PUT_BACK.format(key=places.key)]
    if places.old.is_dir():
        kept = retire(places)
        return [f"kept: {kept}"] if kept else []
    return []


def publish(places: Places, record: Record) -> str | None:
    """Make the staged files the model: write the record into them, then rename.

    What was in place goes only after that, see `retire`. Returns the directory where files of others were kept, if
    there were any.
    """
    _open_for_reading(places.staging)
    write_atomically(places.staging / RECORD, record.to_json())
    if os.path.lexists(places.home):
        places.home.rename(places.old)
    places.staging.rename(places.home)
    _sync_directory(places.models)
    return retire(places) if places.old.is_dir() else None


def retire(places: Places) -> str | None:
    """Keep what `places.old` holds as the way back if it is another model that we fetched, else discard it.

    One earlier model is kept, the first since all services were healthy: later ones never served. Returns the
    directory where files of others were kept, if there were any.
    """
    before = _identity(places.old)
    if before is None or before[0]["kind"] == "local" or before == _identity(places.home) or places.earlier.is_dir():
        return discard(places.old, places)
    places.earlier.parent.mkdir(exist_ok=True)
    places.old.rename(places.earlier)
    return None


def _identity(directory: Path) -> tuple[Mapping[str, Any], str] | None:
    try:
        record = read_record(directory / RECORD)
    except (OSError, ValueError):
        return None
    return record.source, record.format


def record_digest(record: Path) -> str:
    """Return the SHA-256 of a model's record, which tells one state of the model from another; '' without one."""
    try:
        return hashlib.sha256(record.read_bytes()).hexdigest()
    except OSError:
        return ""


def exchange(places: Places) -> None:
    """Put the earlier model in place and keep the present one as the earlier; the lock is held. Raises OSError.

    Killed on the way, `recover` finishes or undoes it.
    """
    places.home.rename(places.old)
    places.earlier.rename(places.home)
    places.old.rename(places.earlier)


def drop_earlier(models: Path, needed: Callable[[str], bool]) -> None:
    """Discard the earlier models whose record's digest nobody needs."""
    with contextlib.suppress(FileNotFoundError):
        for directory in sorted((models / ".earlier").iterdir()):
            if not needed(record_digest(directory / RECORD)):
                discard(directory, Places(models, directory.name))


def _open_for_reading(root: Path) -> None:
    """Files and directories of a model are read by the engine's user, whatever umask fetched them."""
    root.chmod(0o755)
    for directory, directories, names in os.walk(root):
        for name, mode in [(name, 0o755) for name in directories] + [(name, 0o644) for name in names]:
            path = Path(directory, name)
            if not path.is_symlink():  # a link leads to what is somebody else's
                path.chmod(mode)


def discard(old: Path, places: Places) -> str | None:
    """Remove the files of a replaced model that we had put there, its record last; move anything else aside.

    Ours are the files of its record, files that are the very same as in the new model, links, and what a download
    client left. Returns the directory in which the rest is kept.
    """
    ours: set[str] = set()
    with contextlib.suppress(OSError, ValueError):
        record = read_record(old / RECORD)
        if record.source["kind"] != "local":  # what a local record names belongs to the user
            ours = set(record.files)
    for directory, directories, names in os.walk(old, topdown=False):  # never through links
        for path in (Path(directory, name) for name in names + directories):
            name = path.relative_to(old).as_posix()
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):  # not empty: something of somebody's is in it
                    path.rmdir()
            elif name != RECORD and (name in ours or _is_ours(path, places.home / name, name)):
                path.unlink()
    if {path.name for path in old.iterdir()} - {RECORD}:
        place = _free_place(places)
        place.parent.mkdir(exist_ok=True)
        old.rename(place)
        return str(place)
    (old / RECORD).unlink(missing_ok=True)
    old.rmdir()
    return None


def _is_ours(path: Path, new: Path, name: str) -> bool:
    if path.is_symlink() or name.startswith(".cache/huggingface/") or name.endswith(".incomplete"):
        return True
    if not new.is_file() or new.stat().st_size != path.stat().st_size:
        return False
    return new.samefile(path) or hash_file(new)[0] == hash_file(path)[0]


def _free_place(places: Places) -> Path:
    number = 1
    while os.path.lexists(places.models / ".replaced" / f"{places.key}-{number}"):
        number += 1
    return places.models / ".replaced" / f"{places.key}-{number}"


def tree_bytes(*roots: Path) -> int:
    """Bytes that the files below these directories take, for progress; what vanishes meanwhile counts nothing."""
    total = 0
    for root in roots:
        for directory, _names, names in os.walk(root):
            for name in names:
                with contextlib.suppress(OSError):
                    information = Path(directory, name).lstat()
                    total += min(information.st_size, information.st_blocks * 512)  # less while a file has holes
    return total
