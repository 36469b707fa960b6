# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated hub, asked by the hub's own client `hf` of the version that the role installs."""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.tests.hub_sim import HubSim, clients
from ansible_collections.gpurig.llm.tests.unit import tiny_models as tiny

TOKEN = "hf_" + "a" * 34
STRANGER = "hf_" + "b" * 34


@pytest.fixture(scope="session")
def hf() -> Path:
    return clients.hf()


@pytest.fixture
def hub() -> Iterator[HubSim]:
    with HubSim() as sim:
        yield sim


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tiny.write_safetensors(tmp_path / "model", shards=2)
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text("{}")
    (directory / "empty.txt").write_text("")
    return directory


def environment(hub: HubSim, home: Path, token: str | None = None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {
        **clean,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home / "hf-home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_COLOR": "1",
        **({"HF_TOKEN": token} if token else {}),
    }


def run_hf(
    hf: Path, hub: HubSim, home: Path, *words: str | Path, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [hf, *words],
        env=environment(hub, home, token),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def same(model: Path, target: Path) -> bool:
    names = sorted(p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file())
    return filecmp.cmpfiles(model, target, names, shallow=False) == (names, [], [])


def get(url: str, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={k.replace("_", "-"): v for k, v in headers.items()})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read()


def test_download_and_verify(hub: HubSim, hf: Path, model: Path, tmp_path: Path) -> None:
    revision = hub.add("acme/tiny", model)
    got = run_hf(hf, hub, tmp_path, "download", "acme/tiny", "--revision", revision, "--local-dir", tmp_path / "got")
    assert got.returncode == 0, got.stderr
    assert same(model, tmp_path / "got")
    verify = ("cache", "verify", "acme/tiny", "--revision", revision, "--local-dir", tmp_path / "got")
    good = run_hf(hf, hub, tmp_path, *verify)
    assert good.returncode == 0, good.stderr
    weights = tmp_path / "got" / "model-00002-of-00002.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"no")
    bad = run_hf(hf, hub, tmp_path, *verify)
    assert bad.returncode == 1
    assert "model-00002-of-00002.safetensors" in bad.stdout + bad.stderr


def test_a_branch_leads_to_the_newest_revision_and_old_ones_stay(
    hub: HubSim, hf: Path, model: Path, tmp_path: Path
) -> None:
    newer = tiny.write_safetensors(tmp_path / "newer", seed=9)
    old = hub.add("acme/tiny", model)
    new = hub.add("acme/tiny", newer)
    assert old != new
    by_branch = run_hf(hf, hub, tmp_path, "download", "acme/tiny", "--local-dir", tmp_path / "a")
    by_commit = run_hf(hf, hub, tmp_path, "download", "acme/tiny", "--revision", old, "--local-dir", tmp_path / "b")
    assert (by_branch.returncode, by_commit.returncode) == (0, 0)
    assert same(newer, tmp_path / "a")
    assert same(model, tmp_path / "b")


def test_file_lists_come_in_pages_and_files_from_another_origin(hf: Path, model: Path, tmp_path: Path) -> None:
    with HubSim(page_size=2, cdn=True) as hub:
        hub.add_account("ann", TOKEN)
        revision = hub.add("acme/tiny", model, users=["ann"])
        got = run_hf(
            hf,
            hub,
            tmp_path,
            "download",
            "acme/tiny",
            "--revision",
            revision,
            "--local-dir",
            tmp_path / "got",
            token=TOKEN,
        )
        assert got.returncode == 0, got.stderr
        assert same(model, tmp_path / "got")
        assert len([seen for seen in hub.requests if "/tree/" in seen.path]) > 3
        assert {seen.account for seen in hub.requests if seen.server == "cdn"} == {""}  # the token stays at home
        assert {seen.account for seen in hub.requests if "/resolve/" in seen.path} == {"ann"}


@pytest.mark.parametrize(
    ("token", "listing_gated", "said"),
    [
        (None, False, "Access denied. Model 'acme/tiny' requires approval."),
        (STRANGER, False, "Access denied. Model 'acme/tiny' requires approval."),
        (STRANGER, True, "Access denied. Model 'acme/tiny' requires approval."),
        ("hf_unknown", False, "Invalid credentials in Authorization header"),
        (TOKEN, True, ""),
    ],
    ids=["none", "no-access", "no-access-to-list", "invalid", "right"],
)
def test_gates(
    hub: HubSim, hf: Path, model: Path, tmp_path: Path, token: str | None, listing_gated: bool, said: str
) -> None:
    hub.gate_listing = listing_gated
    hub.add_account("ann", TOKEN)
    hub.add_account("bob", STRANGER)
    revision = hub.add("acme/tiny", model, users=["ann"])
    got = run_hf(
        hf, hub, tmp_path, "download", "acme/tiny", "--revision", revision, "--local-dir", tmp_path / "got", token=token
    )
    assert (got.returncode != 0) == bool(said)
    assert said in got.stdout + got.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("acme/none", "--revision", "a" * 40), "Model 'acme/none' not found."),
        (("acme/tiny", "--revision", "a" * 40), "Revision not found in model 'acme/tiny'."),
        (("acme/tiny", "nothing.gguf"), "File not found in model 'acme/tiny'."),
        (("acme/private",), "Model 'acme/private' not found."),
    ],
    ids=["repository", "revision", "file", "private"],
)
def test_what_is_not_there(
    hub: HubSim, hf: Path, model: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    hub.add("acme/tiny", model)
    hub.add("acme/private", model, users=["ann"], private=True)
    got = run_hf(hf, hub, tmp_path, "download", *words, "--local-dir", tmp_path / "got")
    assert got.returncode == 1
    assert said in got.stdout + got.stderr


def test_a_lost_connection_is_taken_up_where_it_broke(hub: HubSim, hf: Path, tmp_path: Path) -> None:
    size = 24 * 1024 * 1024
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "weights.bin").write_bytes(os.urandom(1024) * (size // 1024))
    revision = hub.add("acme/big", tmp_path / "big")
    hub.drop_after_bytes, hub.drops = 15 * 1024 * 1024, 1
    got = run_hf(hf, hub, tmp_path, "download", "acme/big", "--revision", revision, "--local-dir", tmp_path / "got")
    assert got.returncode == 0, got.stderr
    assert same(tmp_path / "big", tmp_path / "got")
    first, second = hub.downloads("weights.bin")
    assert (first.status, second.status) == (200, 206)
    assert second.range.startswith("bytes=1048")  # whole chunks of 10 MiB are kept
    assert second.sent_bytes < size


def test_a_killed_client_leaves_a_part_and_starts_the_file_anew(hub: HubSim, hf: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "weights.bin").write_bytes(bytes(30 * 1024 * 1024))
    revision = hub.add("acme/big", tmp_path / "big")
    words = ["download", "acme/big", "--revision", revision, "--local-dir", str(tmp_path / "got")]
    hub.rate_bytes_s = 20 * 1024 * 1024
    child = subprocess.Popen(
        [hf, *words], env=environment(hub, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 30
    while not any(part.stat().st_size for part in (tmp_path / "got").rglob("*.incomplete")):
        assert time.monotonic() < until
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hub.rate_bytes_s = 0
    assert run_hf(hf, hub, tmp_path, *words).returncode == 0
    assert hub.downloads("weights.bin")[-1].range == ""
    assert len(list((tmp_path / "got").rglob("*.incomplete"))) == 1


def test_errors_of_a_busy_hub_pass(hub: HubSim, hf: Path, model: Path, tmp_path: Path) -> None:
    revision = hub.add("acme/tiny", model)
    hub.broken = {f"/tree/{revision}": [503]}
    got = run_hf(hf, hub, tmp_path, "download", "acme/tiny", "--revision", revision, "--local-dir", tmp_path / "got")
    assert got.returncode == 0, got.stderr
    assert same(model, tmp_path / "got")


def test_plain_http(hub: HubSim, model: Path) -> None:
    hub.add_account("ann", TOKEN)
    revision = hub.add("acme/tiny", model)
    base = f"{hub.endpoint}/acme/tiny/resolve/{revision}"
    whole = (model / "model-00001-of-00002.safetensors").read_bytes()
    assert get(f"{base}/model-00001-of-00002.safetensors") == (200, whole)
    assert get(f"{base}/model-00001-of-00002.safetensors", Range="bytes=5-9") == (206, whole[5:10])
    assert get(f"{base}/model-00001-of-00002.safetensors", Range="bytes=9-") == (206, whole[9:])
    assert get(f"{base}/model-00001-of-00002.safetensors", Range=f"bytes={len(whole)}-")[0] == 416
    assert get(f"{base}/empty.txt") == (200, b"")
    assert json.loads(get(f"{hub.endpoint}/api/models/acme/tiny")[1])["sha"] == revision
    assert json.loads(get(f"{hub.endpoint}/api/models/acme/tiny/refs")[1])["branches"][0]["targetCommit"] == revision
    whoami = get(f"{hub.endpoint}/api/whoami-v2", Authorization=f"Bearer {TOKEN}")
    assert json.loads(whoami[1])["name"] == "ann"
    assert get(f"{hub.endpoint}/api/agent-harnesses")[0] == 404


def test_a_renamed_repository_is_found(hub: HubSim, hf: Path, model: Path, tmp_path: Path) -> None:
    revision = hub.add("acme/old", model)
    hub.rename("acme/old", "acme/new")
    got = run_hf(hf, hub, tmp_path, "download", "acme/old", "--revision", revision, "--local-dir", tmp_path / "got")
    assert got.returncode == 0, got.stderr
    assert same(model, tmp_path / "got")


def test_corrupt_files_and_claimed_sizes(hub: HubSim, model: Path) -> None:
    revision = hub.add("acme/tiny", model, claimed_sizes={"config.json": 10**15})
    hub.corrupt = {"config.json": 1}
    tree = json.loads(get(f"{hub.endpoint}/api/models/acme/tiny/tree/{revision}?recursive=true")[1])
    assert {entry["size"] for entry in tree if entry["path"] == "config.json"} == {10**15}
    served = get(f"{hub.endpoint}/acme/tiny/resolve/{revision}/config.json")[1]
    assert served[:-1] == (model / "config.json").read_bytes()[:-1]
    assert served[-1] != (model / "config.json").read_bytes()[-1]


def test_by_hand(hf: Path, model: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "acme").mkdir(parents=True)
    model.rename(root / "acme" / "tiny")
    options = ["--root", str(root), "--gated", "acme/tiny=ann", "--token", f"ann={TOKEN}", "--rate", "10000000"]
    child = subprocess.Popen(
        [sys.executable, "-m", "ansible_collections.gpurig.llm.tests.hub_sim", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        told = json.loads(child.stdout.readline())
        url = f"{told['endpoint']}/acme/tiny/resolve/{told['revisions']['acme/tiny']}/config.json"
        assert get(url)[0] == 401
        assert get(url, Authorization=f"Bearer {TOKEN}") == (200, (root / "acme/tiny/config.json").read_bytes())
    finally:
        child.terminate()
        assert child.wait(10) == 0
        if child.stdout:
            child.stdout.close()
