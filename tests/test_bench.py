"""Benchmarks: what they time, which device they name, and the script for a GPU."""

import json
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import pretend

import bench
from bench import _gpu, lm_train
from fmkit import runtime

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def test_a_time_begins_and_ends_when_the_gpu_has_nothing_to_do(monkeypatch):
    queue = [0.2]  # seconds of work that was asked for before

    def wait():
        time.sleep(sum(queue))
        queue.clear()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    seconds, result = bench.timed(lambda: queue.append(0.05) or "done")
    assert result == "done"
    assert 0.05 <= seconds < 0.2


def test_a_report_names_the_device_that_computed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    case = {"ours": 1.0, "peer": 2.0, "ratio": 2.0}
    for device, name in ((CPU, runtime.device_name(CPU)), ("cuda", "a GPU")):
        bench.report("x", case, equal=True, device=torch.device(device))
        assert json.loads(capsys.readouterr().out)["device"] == name


def test_ours_and_the_peer_train_in_one_precision(rng):
    """What a GPU computes in bfloat16 is compared with the same."""
    shape = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 2, "hidden": 8}
    ours, peer = (
        make(9, shape, context=8) for make in (lm_train.our_model, lm_train.peer_gpt2)
    )
    batches = iter(torch.randint(9, (2, 4, 9), generator=rng))
    seen = []
    for last in (ours.unembedding, peer.lm_head):
        last.register_forward_hook(lambda _, __, u: seen.append(u.dtype))
    with pretend.bfloat16():
        adam = lm_train.adamw(ours)
        lm_train.runner(lm_train.WithLoss(ours), adam, batches, steps=1)()
        lm_train.peer_steps(peer, lm_train.adamw(peer), batches, steps=1)
    assert seen == [torch.bfloat16] * 2


# The script for a GPU


def step(code, *, expected=1, most=60):
    return _gpu.Step("x", expected, most, ["-c", code])


@pytest.fixture
def log(tmp_path):
    return tmp_path / "gpu.log"


def test_the_last_line_of_a_step_is_its_result(log):
    line = _gpu.run(step('print("a"); print(\'{"b": 1}\')'), log, left=60)
    assert (line["step"], line["exit"], line["result"]) == ("x", 0, {"b": 1})
    assert 0 <= line["seconds"] < 60
    assert log.read_text(encoding="utf-8") == 'a\n{"b": 1}\n'


def test_a_step_that_fails_is_a_line(log):
    line = _gpu.run(step('print("before"); 1 / 0'), log, left=60)
    assert line["exit"] == 1
    assert line["result"] == {"said": "ZeroDivisionError: division by zero"}
    assert "before" in log.read_text(encoding="utf-8")


@pytest.fixture
def heeding():
    """The script's own setting: what a shell runs in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding")
def test_a_step_that_lasts_too_long_is_interrupted(log):
    code = "import time\ntry: time.sleep(100)\nexcept KeyboardInterrupt: print('kept')"
    line = _gpu.run(step(code, most=3), log, left=60)
    assert line["result"] == {"said": "kept"}
    assert 3 <= line["seconds"] < 60


def test_a_step_that_does_not_listen_is_killed(log, monkeypatch):
    monkeypatch.setattr(_gpu, "MARGIN", 1)
    code = "import signal, time\nsignal.signal(2, signal.SIG_IGN)\ntime.sleep(100)"
    line = _gpu.run(step(code, most=2), log, left=60)
    assert line["exit"] == -9
    assert line["seconds"] < 60


def test_a_step_without_enough_time_is_not_begun(log):
    line = _gpu.run(step("print(1)", expected=30), log, left=20)
    assert (line["exit"], line["seconds"]) == (_gpu.SKIPPED, 0)
    assert not log.exists()


def test_the_pace_is_that_of_the_checkpoints(tmp_path, capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(_gpu, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    pace = _gpu.Pace(tmp_path, steps=1000, left=500)
    pace()  # nothing is there yet
    for number, (now, done) in enumerate([(120.0, 1), (170.0, 101)]):
        path = tmp_path / f"{number}.pt"
        torch.save({"step": done - 1}, path)
        clock[0] = now
        pace()
        pace()  # it is read once
    [line] = capsys.readouterr().out.splitlines()
    # 100 steps took 50 s, 899 are left; of 500 s, 70 are over
    assert re.findall(r"\d[\d,]*", line) == ["101", "1,000", "450", "430"]


def test_all_steps_have_time_and_a_module_that_is_there():
    for small in (False, True):
        steps = _gpu.steps(small)
        assert sum(step.expected for step in steps) <= _gpu.MEASURED
        for step in steps:
            module = step.command[1]
            path = ROOT / f"{module.replace('.', '/')}.py"
            assert path.is_file() or module == "pytest"
            shrinks = small and module.startswith("bench.") and step.name != "ranks"
            assert ("--small" in step.command) == shrinks


def test_a_whole_call_fails_in_one_step_and_goes_on(tmp_path, monkeypatch, capsys):
    commands = {"simclr_step": "print('{\"views_per_s\": 7}')", "decode": "1 / 0"}
    steps = [_gpu.Step(name, 1, 30, ["-c", c]) for name, c in commands.items()]
    monkeypatch.setattr(_gpu, "steps", lambda small: steps)
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "out"), "--small"])
    made = _gpu.line_of("record", 0, 9.0, '{"probe": 0.9}')
    monkeypatch.setattr(_gpu, "record", lambda folder, *, small, left: made)
    _gpu.main()
    lines = (tmp_path / "out" / "gpu.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in lines]
    assert [(line["step"], line["exit"]) for line in lines] == [
        ("machine", 0),
        ("simclr_step", 0),
        ("decode", 1),
        ("record", 0),
    ]
    assert all(line["small"] for line in lines)
    end = capsys.readouterr().out.splitlines()[-3:]
    assert end == [
        "decode: ended with 1",
        "simclr_step views_per_s: 7, the aim on an H200 is 83,000",
        "record probe: 0.9, the aim on an H200 is 0.856",
    ]


@pytest.mark.parametrize("script", ["gpu", "base_model"])
def test_what_is_carried_is_locked(script):
    def names(text):
        return {
            line.split("==")[0].lower().replace("_", "-")
            for line in text.splitlines()
            if not line.startswith("#")
        }

    carried = names((ROOT / "bench" / f"{script}.txt").read_text(encoding="utf-8"))
    locked = names((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert carried - locked == set()


def test_a_record_that_cannot_begin_is_a_line():
    line = _gpu.attempted(lambda: {}["metrics"], "record")
    assert (line["step"], line["exit"]) == ("record", 1)
    assert line["result"] == {"said": "KeyError: 'metrics'"}
