"""A language model by its name: asset, folder, GGUF file, or id on a hub of our own."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from nbclient import NotebookClient
from support.hub import served
from support.llamas import as_llama_cpp_names_it, random_model, write, write_folder
from support.notebooks import code, notebook
from support.refusals import refused

from fmkit.assets import hub as client
from fmkit.models.pretrained import load_gguf, load_llama, load_pretrained

READ = {"config.json", "generation_config.json", "tokenizer.json"}
# A connection that the client keeps is closed by the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files of two models: a folder of each, one with shards, and a GGUF file."""
    folder = tmp_path_factory.mktemp("made")
    first, second = random_model(), random_model(tied=True, layers=1)
    write_folder(folder / "whole", first)
    write_folder(folder / "sharded", first, shards=3)
    write_folder(folder / "other", second)
    write(folder / "x.gguf", as_llama_cpp_names_it(first))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without models, and a reader with an empty cache and no token."""
    from huggingface_hub import constants

    with served() as hub:
        places = "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + places,
            "HF_HUB_OFFLINE": False,  # other tests set it
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(client, "commits", {})
        yield hub


@pytest.fixture
def offline(monkeypatch):
    from huggingface_hub import constants

    return lambda on=True: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", on)


def same(lm, other):
    weights, others = lm.model.state_dict(), other.model.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    assert (lm.start, lm.ends) == (other.start, other.ends)
    assert lm.tokenizer.to_str() == other.tokenizer.to_str()


def copied(folder, to, *extra):
    """A copy with further files, which are not read."""
    shutil.copytree(folder, to)
    for name in extra:
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_bytes(b"x" * 3000)
    return to


# What is fetched


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_only_what_is_read_is_fetched(made, hub, tmp_path, kind):
    others = ("README.md", "pytorch_model.bin", "consolidated.safetensors", "x.gguf")
    others += ("original/model.safetensors", "model-extra.safetensors", "vocab.json")
    folder = copied(made / kind, tmp_path / kind, *others)
    commit = hub.put("some-one/Llama.2_x", folder)
    lm = load_pretrained("some-one/Llama.2_x", dtype=torch.bfloat16)
    same(lm, load_llama(folder, dtype=torch.bfloat16))
    shards = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    weights = {"whole": {"model.safetensors"}, "sharded": shards}[kind]
    weights |= {"model.safetensors.index.json"} if kind == "sharded" else set()
    assert sorted(hub.sent) == sorted(READ | weights)
    assert client.commits == {"some-one/Llama.2_x": commit}
    load_pretrained("some-one/Llama.2_x")
    assert len(hub.sent) == len(READ | weights)  # nothing twice


def test_a_revision_is_a_branch_a_tag_or_a_commit(made, hub):
    hub.put("a/b", made / "other")
    commit = hub.put("a/b", made / "whole", "v1.0", "refs/pr/3", "feature/x")
    for revision in ("v1.0", "refs/pr/3", "feature/x", commit):
        same(load_pretrained(f"a/b@{revision}"), load_llama(made / "whole"))
        assert client.commits[f"a/b@{revision}"] == commit
    same(load_pretrained("a/b"), load_llama(made / "other"))
    message = refused(load_pretrained, "a/b@v2")
    assert message.endswith(f"{hub.url}/a/b has no revision v2.")


def test_a_gguf_file_of_a_repository(made, hub, tmp_path):
    folder, expected = tmp_path / "q", load_gguf(made / "x.gguf")
    (folder / "sub").mkdir(parents=True)
    shutil.copy(made / "x.gguf", folder / "a.Q4_0.gguf")
    (folder / "config.json").write_text("{}")
    hub.put("a/b-GGUF", folder)
    same(load_pretrained("a/b-GGUF"), expected)
    assert hub.sent == ["a.Q4_0.gguf"]
    several = shutil.copytree(folder, tmp_path / "several")
    shutil.copy(made / "x.gguf", several / "sub/B.gguf")
    hub.put("a/c", several, "main", "refs/pr/1")
    message = refused(load_pretrained, "a/c")
    assert "(a/c/a.Q4_0.gguf), got a.Q4_0.gguf, sub/B.gguf." in message
    for name in ("a/c/sub/B.gguf", "a/c@main/sub/B.gguf", "a/c@refs/pr/1/sub/B.gguf"):
        same(load_pretrained(name), expected)
    assert refused(load_pretrained, "a/c/no.gguf") == "a/c has no no.gguf."


@pytest.mark.parametrize(
    ("name", "parts"),
    {
        "a/b": ("a/b", None, None),
        "A_1/b.c-d": ("A_1/b.c-d", None, None),
        "a/b@v1.0": ("a/b", "v1.0", None),
        "a/b@x/y": ("a/b", "x/y", None),
        "a/b@x/y.gguf": ("a/b", "x", "y.gguf"),
        "a/b/c/d.gguf": ("a/b", None, "c/d.gguf"),
        **dict.fromkeys(["a", "a/b/c", "/a/b", "./a/b.gguf", "../b", "~/b", "a/b@"]),
        **dict.fromkeys(["https://huggingface.co/a/b", "a b/c", "a/b c", "ä/b"]),
    }.items(),
)
def test_the_form_of_a_name(name, parts):
    assert client.parsed(name) == parts


# Without the hub


def test_the_cache_serves_without_the_hub(made, hub, offline, monkeypatch):
    from huggingface_hub import constants

    hub.put("a/b", made / "sharded", "main", "v1")
    hub.put("a/c", made / "whole")
    load_pretrained("a/b@v1")
    hub.status = 503
    commit = client.commits.pop("a/b@v1")
    same(load_pretrained("a/b@v1"), load_llama(made / "sharded"))
    assert client.commits == {"a/b@v1": commit}
    message = f"a/c is no file or folder here, and {hub.url} answers with the status"
    assert refused(load_pretrained, "a/c") == f"{message} 503."
    nowhere = "http://127.0.0.1:9"  # the port that discards
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    same(load_pretrained("a/b@v1"), load_llama(made / "sharded"))
    message = refused(load_pretrained, "a/c")
    assert message.startswith(f"a/c is no file or folder here, and {nowhere} gives")
    offline()
    same(load_pretrained("a/b@v1"), load_llama(made / "sharded"))
    same(load_pretrained(f"a/b@{commit}"), load_llama(made / "sharded"))
    for name in ("a/c", "a/b", "a/b@v2"):
        message = refused(load_pretrained, name)
        assert message.startswith(f"{name} is no file or folder here, and HF_HUB_OFF")


def test_a_cache_with_a_part_of_a_model_says_so(made, hub, offline):
    from huggingface_hub import snapshot_download

    hub.put("a/b", made / "sharded")
    snapshot_download("a/b", allow_patterns=["config.json"])
    offline()
    message = refused(load_pretrained, "a/b")
    assert message.startswith("the cached part of a/b must have model.safetensors or")
    offline(False)
    snapshot_download("a/b", allow_patterns=["*.json", "*1-of-*", "*3-of-*"])
    offline()
    message = "the cached part of a/b has no model-00002-of-00003.safetensors, and HF"
    assert refused(load_pretrained, "a/b").startswith(message)


def test_a_connection_that_breaks_is_one_sentence(made, hub, monkeypatch):
    hub.put("a/b", made / "whole")
    obtain = client.obtain

    def obtained(repository, files):
        hub.status = 500  # from now on
        return obtain(repository, files)

    monkeypatch.setattr(client, "obtain", obtained)
    message = refused(load_pretrained, "a/b")
    assert (
        message
        == f"a/b was not fetched, because {hub.url} answers with the status 500."
    )


# What is refused


def test_what_a_reader_may_not_have(made, hub, monkeypatch):
    message = refused(load_pretrained, "a/none")
    assert message.startswith(f"a/none is no file or folder here, and {hub.url} has no")
    hub.put("a/b", made / "whole")
    hub.gated["a/b"] = "sesame"
    message = refused(load_pretrained, "a/b")
    assert message.endswith(f"accept its terms at {hub.url}/a/b and set HF_TOKEN.")
    monkeypatch.setenv("HF_TOKEN", "sesame")
    same(load_pretrained("a/b"), load_llama(made / "whole"))
    for status in (401, 403):
        hub.status = status
        message = refused(load_pretrained, "a/c")
        assert hub.url in message
        assert "HF_TOKEN" in message


def test_what_is_not_supported_is_refused_before_weights_come(made, hub, tmp_path):
    def without(name, *names, **changes):
        folder = copied(made / "whole", tmp_path / name, "pytorch_model.bin")
        for file in names:
            (folder / file).unlink()
        path = folder / "config.json"
        if changes:
            said = json.loads(path.read_text("utf-8")) | changes
            path.write_text(json.dumps(said), "utf-8")
        hub.put(f"a/{name}", folder)
        return refused(load_pretrained, f"a/{name}")

    message = without("bin", "model.safetensors")
    assert message.startswith(
        "a/bin must have model.safetensors or a GGUF file, got co"
    )
    assert without("t", "tokenizer.json") == "a/t has no tokenizer.json."
    assert without("c", "config.json") == "a/c has no config.json."
    message = without("gemma", model_type="gemma")
    assert "config.json: model_type must be" in message
    assert "model.safetensors" not in hub.sent


def test_names_that_name_nothing(made, hub, tmp_path, monkeypatch, asset_cache):
    for name in ("smollm2", "", "/no/such/folder", "minilm-l6"):
        message = refused(load_pretrained, name)
        assert message.startswith("name must be an asset (smollm2-135m-instruct-q4), a")
        assert message.endswith(f"got {name!r}.")
    assert refused(load_pretrained, "a--b/c").startswith("a--b/c is no file or folder")


# Here


def test_folders_and_files_here(made, hub, tmp_path, monkeypatch):
    same(load_pretrained(made / "whole"), load_llama(made / "whole"))
    same(load_pretrained(str(made / "x.gguf")), load_gguf(made / "x.gguf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    hub.put("a/b", made / "other")
    (tmp_path / "a/b").mkdir(parents=True)
    assert refused(load_pretrained, "a/b").endswith("or a GGUF file, got no file.")
    shutil.copy(made / "x.gguf", "a/b/y.GGUF")
    for name in ("a/b", "~/a/b", "a/b/y.GGUF"):  # not the hub's
        same(load_pretrained(name), load_gguf(made / "x.gguf"))
    shutil.copy(made / "x.gguf", "a/b/z.gguf")
    message = refused(load_pretrained, "a/b")
    assert message.endswith("(a/b/y.GGUF), got y.GGUF, z.gguf.")
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text("")
    assert "7.txt and 2 more." in refused(load_pretrained, str(tmp_path))


# Progress and settings


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, True), (2.0, False)])
def test_a_long_download_shows_a_bar(made, hub, monkeypatch, seconds, shown, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert (client.MB, client.LONG) == (10**6, 2)
    monkeypatch.setattr(client, "MB", 10**4)
    monkeypatch.setattr(client, "LONG", seconds)
    hub.put("a/b", made / "whole")
    hub.pause = 0.05
    with contextlib.redirect_stderr(Terminal()) as terminal:
        load_pretrained("a/b")
    assert ("downloading a/b, MB" in terminal.getvalue()) is shown
    size = (made / "whole/model.safetensors").stat().st_size // 10**4
    assert (f"/{size} " in terminal.getvalue()) is shown
    assert "Fetching" not in terminal.getvalue()  # the client's own
    monkeypatch.setattr(client, "LONG", 0.0)
    hub.put("a/c", made / "sharded")
    load_pretrained("a/c")
    assert capsys.readouterr() == ("", "")


def test_the_client_s_settings_apply(made, hub, tmp_path):
    """In a kernel and a process, because the client reads them when it is imported."""
    hub.put("a/b", made / "whole")
    hub.gated["a/b"] = "sesame"
    script = "from fmkit.models.pretrained import load_pretrained as load\n"
    script += "print(sum(p.numel() for p in load('a/b').model.parameters()))\n"
    unset = {"HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"}
    given = {name: value for name, value in os.environ.items() if name not in unset}
    given |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
    given |= {"HF_TOKEN": "sesame"}
    client = NotebookClient(notebook(code(script)), record_timing=False)
    [printed] = client.execute(env=given).cells[-1].outputs
    assert (printed.name, int(printed.text) > 1000) == ("stdout", True)
    assert (tmp_path / "home/hub/models--a--b/refs/main").is_file()
    given |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=given, capture_output=True, encoding="utf-8"
    )
    assert (run.stdout, run.stderr) == (printed.text, "")
