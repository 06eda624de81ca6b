"""Device, precision, seeding."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from fmkit import runtime

HERE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("FMKIT_DEVICE", raising=False)


def test_the_cpu_is_everywhere():
    assert runtime.pick_device("cpu") == torch.device("cpu")


def test_auto_is_what_the_environment_says(monkeypatch):
    monkeypatch.setenv("FMKIT_DEVICE", "cpu")
    assert runtime.pick_device() == torch.device("cpu")


def test_a_name_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("FMKIT_DEVICE", "cuda")
    assert runtime.pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("present", "auto"),
    [((), "cpu"), (("mps",), "cpu"), (("cuda",), "cuda"), (("cuda", "mps"), "cuda")],
)
@pytest.mark.parametrize("variable", [None, "", "auto"])
def test_auto_is_cuda_or_the_cpu(monkeypatch, present, auto, variable):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in present)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in present)
    if variable is not None:
        monkeypatch.setenv("FMKIT_DEVICE", variable)
    assert runtime.pick_device() == torch.device(auto)
    for name in present:
        assert runtime.pick_device(name) == torch.device(name)


def test_unknown_devices(monkeypatch):
    message = "device must be one of auto, cpu, cuda, mps, got 'gpu'."
    with pytest.raises(ValueError, match=re.escape(message)):
        runtime.pick_device("gpu")
    monkeypatch.setenv("FMKIT_DEVICE", "tpu")
    with pytest.raises(ValueError, match=r"FMKIT_DEVICE must be one of .*, got 'tpu'"):
        runtime.pick_device()


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there(name):
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if present[name]:
        pytest.skip(f"this machine has {name}")
    with pytest.raises(
        ValueError, match=rf"device must be on this machine \(.*'{name}'"
    ):
        runtime.pick_device(name)


def test_the_cpu_computes_in_float32():
    a = torch.ones(2, 2)
    with runtime.autocast(torch.device("cpu")):
        assert (a @ a).dtype == torch.float32


def pretend_cuda(monkeypatch, *, native):
    """A card that computes bfloat16, or only emulates it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: native or including_emulation,
    )


@pytest.mark.parametrize("native", [True, False])
def test_cuda_computes_in_bfloat16_where_the_card_has_it(monkeypatch, native):
    pretend_cuda(monkeypatch, native=native)
    on = torch.device("cuda")
    assert runtime.computes_bfloat16(on) is native
    with runtime.autocast(on):
        assert torch.is_autocast_enabled("cuda") is native
        with runtime.exact(), runtime.autocast(on):  # as inside frozen_outputs
            assert not torch.is_autocast_enabled("cuda")
        assert torch.is_autocast_enabled("cuda") is native
    assert not torch.is_autocast_enabled("cuda")


def test_cuda_computes_in_bfloat16():
    if HERE != "cuda":
        pytest.skip("no CUDA here")
    a = torch.ones(2, 2, device="cuda")
    with runtime.autocast(a.device):
        native = runtime.computes_bfloat16(a.device)
        assert (a @ a).dtype == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("native", [True, False])
def test_whether_training_is_in_bfloat16(monkeypatch, native):
    pretend_cuda(monkeypatch, native=native)
    assert runtime.trains_in_bfloat16(torch.device("cuda")) is native
    assert not runtime.trains_in_bfloat16(torch.device("cpu"))
    with runtime.exact():
        assert not runtime.trains_in_bfloat16(torch.device("cuda"))


def precisions():
    return [
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.cudnn.rnn.fp32_precision,
    ]


def test_exact_leaves_nothing_to_autocast_and_tf32_and_restores_both():
    a, before = torch.ones(2, 2), precisions()
    assert "tf32" in before  # torch's default for convolutions
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with runtime.exact():
            assert (a @ a).dtype == torch.float32
            assert precisions() == ["ieee"] * 3
            with runtime.exact():
                pass
            assert precisions() == ["ieee"] * 3
        assert (a @ a).dtype == torch.bfloat16
        with pytest.raises(KeyError), runtime.exact():
            raise KeyError
        assert (a @ a).dtype == torch.bfloat16
    assert precisions() == before


ON_GPU, ON_CPU = torch.device("cuda"), torch.device("cpu")


def test_convolutions_are_timed_where_shapes_are_fixed(monkeypatch):
    """Not where results must repeat, and only on a GPU; afterwards as before."""
    cudnn = torch.backends.cudnn
    for before in (False, True):
        monkeypatch.setattr(cudnn, "benchmark", before)
        with runtime.fixed_shapes(ON_GPU):
            assert cudnn.benchmark
            with runtime.exact():
                assert not cudnn.benchmark
                with runtime.fixed_shapes(ON_GPU):
                    assert not cudnn.benchmark
            with runtime.deterministic(), runtime.fixed_shapes(ON_GPU):
                assert not cudnn.benchmark
            assert cudnn.benchmark
        with runtime.fixed_shapes(ON_CPU):
            assert cudnn.benchmark is before
        with pytest.raises(KeyError), runtime.fixed_shapes(ON_GPU):
            raise KeyError
        assert cudnn.benchmark is before


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_deterministic_restores_all_settings(monkeypatch, workspace):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with runtime.deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with runtime.deterministic():
            pass
        assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError), runtime.deterministic():
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == before


def test_nothing_is_compiled_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    model = torch.nn.Linear(2, 2)
    assert runtime.compiled(model) is model
    nothing = torch.nn.ReLU()  # without a parameter it has no device
    assert runtime.compiled(nothing) is nothing
    assert not runtime.fused(ON_CPU)
    assert runtime.fused(ON_GPU)


class OnGPU(torch.nn.Linear):
    """A layer that says its weights are on a GPU."""

    def parameters(self, recurse=True):
        class Weight:
            device = ON_GPU

        return iter([Weight])


@pytest.mark.parametrize(
    "lacking", [None, "triton", "compiler", "headers", "capability"]
)
def test_compiled_on_a_gpu_if_there_is_what_it_takes(monkeypatch, tmp_path, lacking):
    if lacking != "headers":
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", {"include": str(tmp_path)}.get)
    compilers = {"CC": "", "clang": "/usr/bin/clang" if lacking != "compiler" else None}
    monkeypatch.setenv("CC", "")
    monkeypatch.setattr("shutil.which", lambda name: compilers.get(name))
    found = {"triton": lacking != "triton" or None}
    monkeypatch.setattr("importlib.util.find_spec", found.get)
    capability = (6, 0) if lacking == "capability" else (7, 5)  # P100 and T4
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capability, raising=False
    )
    monkeypatch.setattr(torch, "compile", lambda module: ("compiled", module))
    model = OnGPU(2, 2)
    expected = model if lacking else ("compiled", model)
    assert runtime.compiled(model) == expected


def test_a_compiled_module_has_the_weights_of_the_module():
    """torch's, whose form of a module `compiled` returns."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    form = torch.compile(model, backend="eager")
    form(torch.ones(3, 2)).sum().backward()
    both = zip(form.parameters(), model.parameters(), strict=True)
    assert all(one is other for one, other in both)
    assert model[1].num_batches_tracked == 1
    assert list(model.state_dict())[:2] == ["0.weight", "0.bias"]


def test_dropout_draws_from_the_global_generator():
    generator = runtime.global_generator(ON_CPU)
    before = generator.get_state()
    first = torch.nn.functional.dropout(torch.ones(100))
    generator.set_state(before)
    assert torch.equal(torch.nn.functional.dropout(torch.ones(100)), first)
    with pytest.raises(ValueError, match="device must be a CPU or CUDA, got 'meta'"):
        runtime.global_generator(torch.device("meta"))


def test_what_is_sent_to_a_cpu_is_there():
    x = torch.ones(3)
    assert runtime.sent(x, ON_CPU) is x


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", None])
def test_a_processor_says_whether_it_computes_bfloat16(monkeypatch, name):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx2": True, name: True}
    )
    assert runtime.computes_bfloat16(torch.device("cpu")) is (name is not None)
    assert not runtime.computes_bfloat16(torch.device("mps"))


def test_seeded_weights():
    def weights(seed):
        runtime.seed_weights(seed)
        return torch.nn.Linear(3, 3).weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_peak_memory_grows_with_what_is_held():
    before = runtime.peak_memory_mb(torch.device("cpu"))
    if before is None:
        pytest.skip("this system does not say")
    held = torch.ones(int(before + 200), 1_000_000, dtype=torch.uint8)
    after = runtime.peak_memory_mb(torch.device("cpu"))
    assert after >= held.numel() / 1e6
    assert before < 1e5  # MB, not bytes or KiB


def test_memory_of_a_mac_s_gpu_is_what_its_driver_holds(monkeypatch):
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3_000_000)
    assert runtime.peak_memory_mb(torch.device("mps")) == 3


def test_batches_of_prompts_take_a_tenth_of_a_gpu_s_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda on: (30_000, 80_000))
    assert runtime.bytes_at_once(torch.device("cuda")) == 3000
    shared = {runtime.bytes_at_once(torch.device(name)) for name in ("cpu", "mps")}
    assert shared == {2**28}


def test_on_a_cpu_values_are_read_at_once():
    made = []
    tensors = (made.append(i) or torch.tensor([i, 2 * i]) for i in range(3))
    read = [(row, len(made)) for row in runtime.read_late(tensors)]
    assert read == [([0, 0], 1), ([1, 2], 2), ([2, 4], 3)]


def test_names_of_devices():
    assert runtime.device_name(torch.device("cpu")).startswith("cpu (")
    assert runtime.device_name(torch.device("mps")).startswith("mps (")


CHAPTERS = Path(__file__).resolve().parents[2] / "chapters"
MODELS_RUN = ("frozen_outputs(", "score_answers(", "finetune(", "device=on", ".to(on")


@pytest.mark.parametrize("path", sorted(CHAPTERS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_cells_that_compare_models_run_exactly(path):
    """A GPU would compute one side in bfloat16 or TF32, and the assert would fail."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    comparing = [source for source in sources if "assert_close(" in source]
    models = [source for source in comparing if any(x in source for x in MODELS_RUN)]
    assert [source for source in models if "runtime.exact()" not in source] == []
