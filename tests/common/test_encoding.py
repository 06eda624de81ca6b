"""What fmkit reads and writes is UTF-8 in any locale, and printing never fails."""

import os
import subprocess
import sys

import pytest
from PIL import Image

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as Windows'
READ = """
import sys
from pathlib import Path
from fmkit.data.load import load_images
from fmkit.data.text import load_corpus
from fmkit.runs.parameters import read_profile
from fmkit.runs.record import new_record, read_record, write_record
from fmkit.tasks.questions import load_task

assert sys.stdout.encoding != "utf-8"
images, texts, text, profile, task, record = map(Path, sys.argv[1:])
assert load_images(images)[0].classes == ("\\u72d7", "\\u732b")
[train, *_], [test] = load_corpus(texts)
assert {train.text[0], test.text[0]} <= set("\\u732b\\u72d7\\u9c7c")
assert {train.group[0], test.group[0]} <= set("\\u732b\\u72d7\\u9c7c")
assert load_corpus(text)[0][0].text.startswith("\\u732b")
assert read_profile(profile) ["tiny"]["data"] == ("\\u56fe\\u7247", 1)
assert load_task(task).items[0] == ("\\u732b", "\\u72d7")
made = new_record("x", {"data": "\\u56fe\\u7247", "seed": 0}, device="cpu")
write_record(record, made)
assert read_record(record)["parameters"]["data"] == "\\u56fe\\u7247"
"""


def run(*command):
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"} | ASCII
    command = [sys.executable, *command]
    return subprocess.run(command, env=environ, capture_output=True, encoding="utf-8")


def test_files_are_utf8_in_a_locale_that_is_not(tmp_path):
    for i, name in enumerate("猫狗"):
        for split in ("train", "test"):
            place = tmp_path / "图" / split / name
            place.mkdir(parents=True)
            Image.new("RGB", (4, 4), (i, 0, 0)).save(place / "图.png")
    (tmp_path / "texts").mkdir()
    for name in "猫狗鱼":
        (tmp_path / "texts" / f"{name}.txt").write_text(name * 50, encoding="utf-8")
    text, profile, task = (tmp_path / name for name in ("文.txt", "p.yaml", "t.csv"))
    text.write_text("猫" * 50, encoding="utf-8")
    profile.write_text("tiny: {data: 图片}\n", encoding="utf-8")
    task.write_text("猫,狗\n鱼,鸟\n", encoding="utf-8")
    paths = (
        tmp_path / "图",
        tmp_path / "texts",
        text,
        profile,
        task,
        tmp_path / "r.json",
    )
    found = run("-c", READ, *map(str, paths))
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("text", ["…", "图片", "caf\udce9"])
def test_printing_never_fails(text):
    code = "from fmkit import cli\n"
    code += f"cli._info = lambda options: print({f'a {text} b'!a})\n"
    code += "raise SystemExit(cli.main(['info']))"
    found = run("-c", code)
    assert found.returncode == 0
    assert found.stdout.startswith("a ")
    assert found.stdout.endswith("? b\n")
