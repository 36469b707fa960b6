# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records, inspection, and the exchange of a model's directory, on real files."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import model_store
from ansible_collections.gpurig.llm.plugins.module_utils.child import log_tail, run_child
from ansible_collections.gpurig.llm.plugins.module_utils.model_files import ModelEntry, parse_entry
from ansible_collections.gpurig.llm.plugins.module_utils.model_store import (
    RECORD,
    ModelStoreError,
    NoSpaceError,
    Places,
    Progress,
    Record,
    UnreadableError,
    discard,
    hash_file,
    inspect,
    interrupted,
    judge_directory,
    listing_of,
    locked,
    megabytes,
    publish,
    read_record,
    record_file,
    recover,
    require_readable,
    require_space,
    tree_bytes,
    write_atomically,
)
from ansible_collections.gpurig.llm.tests.unit import tiny_models as tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENTRY = parse_entry("chat", "hub", "safetensors", {"repo": "acme/tiny", "revision": COMMIT})
OTHER_USER = "nobody"

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "models" / ".staging").mkdir(parents=True)
    return Places(tmp_path / "models", "chat")


def stage(places: Places, seed: int = 0) -> Record:
    """A complete model in the staging area, and the record that belongs to it."""
    tiny.write_safetensors(places.staging, seed=seed)
    names = listing_of(places.staging)
    files = {name: record_file(places.staging / name, hash_file(places.staging / name)[0]) for name in names}
    return Record(ENTRY.identity(), "safetensors", str(places.staging), ".", files, 5000)


def have(places: Places, seed: int = 0) -> Record:
    assert publish(places, stage(places, seed)) is None
    return read_record(places.record)


def content(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# --- record ---


def test_a_record_survives_a_round_trip_and_a_move(places: Places) -> None:
    record = have(places)
    assert record.path == str(places.home)
    assert record.size_bytes == sum(p.stat().st_size for p in places.home.iterdir() if p.name != RECORD)
    places.home.rename(places.models / "moved")
    assert read_record(places.models / "moved" / RECORD).path == str(places.models / "moved")
    assert inspect(places.models / "moved", ENTRY).status == "complete"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 1}', '{"schema": 2}', '{"schema": 1, "files": 3}', "\udcff"], ids=range(7)
)
def test_a_damaged_record_is_a_value_error(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=r".+"):
        read_record(tmp_path / RECORD)


def test_writing_leaves_the_old_text_to_readers_and_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "x", "older")
    with (tmp_path / "x").open() as reader:
        write_atomically(tmp_path / "x", "old")
        assert reader.read() == "older"
    monkeypatch.setattr(os, "fsync", lambda _fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "x", "new")
    assert content(tmp_path) == {"x": b"old"}


# --- inspect ---


def touch_later(path: Path) -> None:
    seen = path.stat()
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 5_000_000_000))


def edit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)
    touch_later(path)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def test_complete(places: Places) -> None:
    record = have(places)
    state = inspect(places.home, ENTRY)
    assert (state.status, state.differences, state.touched) == ("complete", (), False)
    assert state.record == record
    assert set(state.intact) == set(record.files)


def test_absent(places: Places) -> None:
    assert inspect(places.home, ENTRY).status == "absent"
    places.home.mkdir()
    assert inspect(places.home, ENTRY).status == "absent"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda home: edit(home / "model.safetensors"), "model.safetensors: edited, sha256 "),
        (lambda home: shorten(home / "model.safetensors"), "model.safetensors: truncated, "),
        (lambda home: lengthen(home / "config.json"), "config.json: edited, "),
        (lambda home: (home / "tokenizer.json").unlink(), "tokenizer.json: deleted"),
        (lambda home: (home / RECORD).unlink(), ".gpurig.json: missing"),
        (lambda home: (home / RECORD).write_text("{"), ".gpurig.json: "),
    ],
    ids=["edited", "truncated", "grown", "deleted", "record-deleted", "record-damaged"],
)
def test_damage_is_named(places: Places, spoil: Callable[[Path], None], said: str) -> None:
    have(places)
    before = content(places.home)
    spoil(places.home)
    state = inspect(places.home, ENTRY)
    assert state.status == "damaged"
    assert len(state.differences) == 1
    assert state.differences[0].startswith(said)
    if state.record:
        assert len(state.intact) == len(before) - 2  # without the record and the spoiled one


def test_a_touched_file_is_hashed_once_and_still_good(places: Places) -> None:
    have(places)
    touch_later(places.home / "model.safetensors")
    state = inspect(places.home, ENTRY)
    assert (state.status, state.touched) == ("complete", True)
    assert "model.safetensors: its modification time changed" in state.differences[0]
    assert state.record is not None
    write_atomically(places.record, state.record.to_json())
    assert inspect(places.home, ENTRY).differences == ()


def test_nothing_is_hashed_while_sizes_and_times_are_as_recorded(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(places)
    monkeypatch.setattr(model_store, "hash_file", lambda *_args: pytest.fail("hashed"))
    assert inspect(places.home, ENTRY).status == "complete"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            parse_entry("chat", "hub", "safetensors", {"repo": "acme/tiny", "revision": "f" * 40}),
            f"source: hub acme/tiny {COMMIT} -> hub acme/tiny {'f' * 40}",
        ),
        (parse_entry("chat", "hub", "awq", {"repo": "acme/tiny", "revision": COMMIT}), "format: safetensors -> awq"),
        (
            parse_entry("chat", "hub", "safetensors", {"repo": "acme/tiny", "revision": COMMIT, "files": ["*.json"]}),
            f"source: hub acme/tiny {COMMIT} -> hub acme/tiny {COMMIT} files *.json",
        ),
        (
            parse_entry("chat", "local", "safetensors", {"path": "/data/x"}),
            f"source: hub acme/tiny {COMMIT} -> local /data/x",
        ),
    ],
    ids=["revision", "format", "files", "source"],
)
def test_another_model_is_said(places: Places, entry: ModelEntry, said: str) -> None:
    have(places)
    state = inspect(places.home, entry)
    assert (state.status, state.differences) == ("other", (said,))


def test_what_is_in_the_way_is_refused(places: Places, tmp_path: Path) -> None:
    places.home.write_text("a file")
    with pytest.raises(ModelStoreError, match="is a file that gpurig did not make"):
        inspect(places.home, ENTRY)
    places.home.unlink()
    places.home.symlink_to(tmp_path)
    with pytest.raises(ModelStoreError, match="is a link that gpurig did not make"):
        inspect(places.home, ENTRY)


# --- publish, recover, discard ---


def test_publish_replaces_and_removes_what_we_had_put_there(places: Places) -> None:
    have(places, seed=1)
    old = content(places.home)
    (places.staging / "sub").mkdir(parents=True)
    (places.staging / "sub").chmod(0o700)
    have(places, seed=2)
    assert content(places.home) != old
    assert not places.old.exists()
    assert not places.staging.exists()
    assert (places.home / "sub").stat().st_mode & 0o777 == 0o755
    assert {p.stat().st_mode & 0o777 for p in places.home.rglob("*") if p.is_file()} == {0o644}


def test_files_of_others_are_kept_aside(places: Places) -> None:
    have(places, seed=1)
    (places.home / "notes").mkdir()
    (places.home / "notes" / "mine.txt").write_text("do not lose this")
    kept = publish(places, stage(places, seed=2))
    assert kept == str(places.models / ".replaced" / "chat-1")
    assert (Path(kept) / "notes" / "mine.txt").read_text() == "do not lose this"
    assert not (Path(kept) / "model.safetensors").exists()  # ours is gone
    (places.home / "more.txt").write_text("again")
    assert publish(places, stage(places, seed=3)) == str(places.models / ".replaced" / "chat-2")


def test_without_a_record_only_identical_files_count_as_ours(places: Places) -> None:
    have(places, seed=1)
    places.record.unlink()
    (places.home / "model.safetensors").write_bytes(b"a user's own weights")
    (places.home / "old.incomplete").write_bytes(b"rest")
    kept = publish(places, stage(places, seed=1))
    assert kept is not None
    assert list(content(Path(kept))) == ["model.safetensors"]


def test_a_user_who_keeps_models_in_our_directory_does_not_lose_them(places: Places) -> None:
    """A local record names files that are the user's, also where they lie in the directory of that name."""
    tiny.write_gguf(places.home / "mine.gguf")
    sha256, _sha1 = hash_file(places.home / "mine.gguf")
    entry = parse_entry("chat", "local", "gguf", {"path": str(places.home / "mine.gguf")})
    files = {"mine.gguf": record_file(places.home / "mine.gguf", sha256)}
    record = Record(entry.identity(), "gguf", str(places.home), "mine.gguf", files, 0)
    write_atomically(places.record, record.to_json())
    assert inspect(places.home, entry).status == "complete"
    kept = publish(places, stage(places))
    assert kept is not None
    assert hash_file(Path(kept) / "mine.gguf")[0] == sha256


def test_links_in_an_old_directory_are_cut_and_never_followed(places: Places, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "weights.gguf").write_bytes(b"precious")
    (tmp_path / "data" / "weights.gguf").chmod(0o600)
    have(places)
    (places.home / "data").symlink_to(tmp_path / "data")
    staged = stage(places, seed=2)
    (places.staging / "also").symlink_to(tmp_path / "data")
    assert publish(places, staged) is None
    assert content(tmp_path / "data") == {"weights.gguf": b"precious"}
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / "weights.gguf").stat().st_mode & 0o777 == 0o600


def test_killed_between_the_two_renames(places: Places) -> None:
    have(places, seed=1)
    old = content(places.home)
    places.home.rename(places.old)
    assert interrupted(places)
    assert recover(places) == ["chat: put back after an interrupted exchange"]
    assert content(places.home) == old
    assert recover(places) == []


def test_killed_while_the_old_one_was_removed(places: Places) -> None:
    have(places, seed=1)
    stage(places, seed=2)
    places.home.rename(places.old)
    places.staging.rename(places.home)
    (places.old / "config.json").unlink()
    assert not interrupted(places)
    assert recover(places) == []
    assert not places.old.exists()
    assert not (places.models / ".replaced").exists()


def test_recover_tells_what_it_kept(places: Places) -> None:
    have(places)
    places.old.mkdir()
    (places.old / "mine.txt").write_text("x")
    assert recover(places) == [f"kept: {places.models}/.replaced/chat-1"]


def publish_and_die(places: Places, record: Record, stop: int) -> int:
    """Publish in a process of its own that is killed at its `stop`-th touch of the disk; returns how many there were.

    Every rename, removal, new directory and opened file below the models directory is such a touch.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        step = 0

        def counted(event: str, args: tuple[object, ...]) -> None:
            nonlocal step
            if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open", "os.chmod"):
                step += str(args[0]).startswith(str(places.models))
                if step == stop:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(counted)
        try:
            publish(places, record)
            os.write(writer, str(step).encode())
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as stream:
        told = stream.read()
    status = os.waitpid(child, 0)[1]
    assert bool(told) != (os.waitstatus_to_exitcode(status) == -signal.SIGKILL)
    return int(told or 0)


@pytest.mark.parametrize("new_seed", [2, 1], ids=["another-model", "mending"])
def test_killed_at_any_step_the_old_or_the_new_model_is_whole(places: Places, new_seed: int) -> None:
    def fresh() -> Record:
        if places.models.exists():
            shutil.rmtree(places.models)
        places.staging_area.mkdir(parents=True)
        record = stage(places, seed=1)
        for path in places.staging.iterdir():  # so that a mended model has the very same record
            os.utime(path, ns=(0, 10**18))
        files = {name: replace(file, mtime_ns=10**18) for name, file in record.files.items()}
        publish(places, replace(record, files=files))
        staged = stage(places, seed=new_seed)
        if new_seed == 1:
            shorten(places.home / "model.safetensors")
            for path in places.staging.iterdir():
                os.utime(path, ns=(0, 10**18))
            return replace(staged, files=files)
        return staged

    record = fresh()
    whole = [content(places.home)["model.safetensors"], content(places.staging)["model.safetensors"]]
    steps = publish_and_die(places, record, 0)
    assert steps > 20
    seen = set()
    for stop in range(1, steps + 1):
        publish_and_die(places, fresh(), stop)
        recover(places)
        found = content(places.home)
        seen.add(whole.index(found["model.safetensors"]))
        if new_seed != 1 or found["model.safetensors"] == whole[1]:
            assert inspect(places.home, ENTRY).status == "complete", stop
        assert not places.old.exists(), stop
        assert not (places.models / ".replaced").exists(), stop
    assert seen == {0, 1}


# --- one at a time, progress, space ---


def test_two_runs_wait_for_each_other(places: Places) -> None:
    order: list[str] = []

    def other() -> None:
        with locked(places, on_wait=order.append):
            order.append("second")

    with locked(places):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join()
    assert order[0].startswith("waiting for another run that fetches chat")
    assert order[1:] == ["first", "second"]


def test_a_lock_lives_as_long_as_the_child_that_inherited_it(places: Places) -> None:
    with locked(places) as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"], pass_fds=[descriptor])
    began = time.monotonic()
    with locked(places):
        assert time.monotonic() - began > 0.5
    child.wait()


def test_progress_lines(places: Places) -> None:
    now = [100.0]
    progress = Progress(places.progress, clock=lambda: now[0])
    assert places.progress.read_text() == ""
    progress.start("fetching", 98_000_000)
    progress.set(10_000_000)  # too early for a line
    now[0] += 2
    assert progress.due()
    progress.add(21_000_000)
    assert not progress.due()
    progress.start("verifying", None)
    assert places.progress.read_text().splitlines() == [
        "fetching: 0 kB of 98 MB",
        "fetching: 31 MB of 98 MB",
        "verifying: 0 kB",
    ]
    progress.close()
    assert not places.progress.exists()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 kB"),
        (480_000, "480 kB"),
        (5_040_000, "5.0 MB"),
        (98_362_432, "98 MB"),
        (1_500_000_000, "1.5 GB"),
        (61_200_000_000, "61 GB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert megabytes(count) == text


def test_space_is_asked_of_the_nearest_directory(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1000, "chat")
    with pytest.raises(NoSpaceError, match=r"chat needs 1000000 GB in .*not/yet, .* are free: .*models_dir"):
        require_space(tmp_path / "not" / "yet", 10**15, "chat")


def test_tree_bytes_counts_what_is_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1" * 100)
    with (tmp_path / "hole").open("wb") as stream:
        stream.truncate(10**9)
    assert 100 <= tree_bytes(tmp_path, tmp_path / "missing") < 10**6


# --- listing and reading ---


def test_listing_of_one_file_brings_its_parts(tmp_path: Path) -> None:
    tiny.write_split_gguf(tmp_path, "big", 3)
    tiny.write_gguf(tmp_path / "other.gguf")
    tiny.write_gguf(tmp_path / "sub" / "big-00001-of-00003.gguf")
    parts = [f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert sorted(listing_of(tmp_path, "big-00002-of-00003.gguf")) == parts
    assert sorted(listing_of(tmp_path, "other.gguf")) == ["other.gguf"]
    assert judge_directory(tmp_path, "gguf", "big-00003-of-00003.gguf").main == parts[0]
    assert not judge_directory(tmp_path, "gguf").complete


def test_listing_skips_what_cannot_be_read_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert sorted(listing_of(tmp_path)) == ["link", "real"]


def test_hashes_are_those_of_sha256sum_and_git(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    seen: list[int] = []
    assert hash_file(path, seen.append) == (
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "ce013625030ba8dba906f756967f9e9ca394464a",
    )
    assert seen == [6]


@only_root
def test_another_user_is_asked_of_the_kernel(tmp_path: Path) -> None:
    for directory in [tmp_path, *tmp_path.parents][:-2]:
        directory.chmod(directory.stat().st_mode | 0o055)
    model = tmp_path / "model"
    tiny.write_safetensors(model)
    assert require_readable(model, OTHER_USER) is None
    (model / "model.safetensors").chmod(0o600)
    with pytest.raises(UnreadableError, match=r"user nobody cannot read .*model.safetensors \(Permission denied\)"):
        require_readable(model, OTHER_USER)
    model.chmod(0o700)
    with pytest.raises(UnreadableError, match="user nobody cannot read"):
        require_readable(model, OTHER_USER)
    assert require_readable(model, pwd.getpwuid(os.geteuid()).pw_name) is None


def test_ourselves_and_nobody_at_all(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    assert require_readable(tmp_path / "x", None) is None
    with pytest.raises(UnreadableError, match=r"this run cannot read .*y \(No such file or directory\)"):
        require_readable(tmp_path / "y", None)
    with pytest.raises(UnreadableError, match="user no-such-user does not exist"):
        require_readable(tmp_path / "x", "no-such-user")


def test_without_root_another_user_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("x")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: pwd.struct_passwd(("me", "x", 4711, 4711, "", "/", "/bin/sh")))
    said = require_readable(tmp_path / "x", OTHER_USER)
    assert said is not None
    assert "was not checked: only root can ask" in said


def test_discard_of_an_empty_directory(places: Places) -> None:
    places.old.mkdir()
    assert discard(places.old, places) is None
    assert not places.old.exists()


# --- the child process ---


def test_a_child_is_watched_and_its_output_kept(tmp_path: Path) -> None:
    ticks: list[int] = []
    program = "import os, time; print('secret', os.environ['X']); time.sleep(0.4); raise SystemExit(7)"
    status = run_child(
        [sys.executable, "-c", program],
        {"X": "s3cret"},
        tmp_path / "log",
        tmp_path,
        on_tick=lambda: ticks.append(1),
        tick_s=0.1,
    )
    assert status == 7
    assert len(ticks) >= 2
    assert log_tail(tmp_path / "log", secrets=["s3cret", ""]) == "secret ***"
    assert log_tail(tmp_path / "none") == ""


def test_an_error_of_ours_ends_the_child(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("enough")

    program = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(RuntimeError, match="enough"):
        run_child([sys.executable, "-c", program], dict(os.environ), tmp_path / "log", tmp_path, fail, tick_s=1.0)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_child_that_ignores_us_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.gpurig.llm.plugins.module_utils import child as child_module

    monkeypatch.setattr(child_module, "END_WITHIN_S", 0.3)
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"

    def fail() -> None:
        raise RuntimeError("enough")

    began = time.monotonic()
    with pytest.raises(RuntimeError):
        run_child([sys.executable, "-c", program], dict(os.environ), tmp_path / "log", tmp_path, fail, tick_s=1.0)
    assert time.monotonic() - began < 10


def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    inner = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = (
        "import os, sys; from pathlib import Path\n"
        "from ansible_collections.gpurig.llm.plugins.module_utils.child import run_child\n"
        f"run_child([sys.executable, '-c', {inner!r}], dict(os.environ), Path({str(tmp_path / 'log')!r}), Path('/'))"
    )
    parent = subprocess.Popen([sys.executable, "-c", outer])
    until = time.monotonic() + 20
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    pid = int((tmp_path / "pid").read_text())
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_record_is_plain_json(places: Places) -> None:
    have(places)
    data = json.loads(places.record.read_text())
    assert sorted(data) == ["fetched_bytes", "files", "format", "main", "schema", "source"]
    assert data["source"] == {"kind": "hub", "repo": "acme/tiny", "revision": COMMIT, "files": []}
    assert sorted(data["files"]["config.json"]) == ["mtime_ns", "sha256", "size"]
