"""Names of clusters: how many devices each has, in which shape, and what is said of bad ones."""

import pytest

from cwm_jax.planning import targets
from cwm_jax.planning.targets import gpu_description, parse_target, target_devices
from cwm_jax.training import hardware

NAMES = {
    "v5p:4x4x8": (128, (4, 4, 8), "tpu", "tpu"),
    "v5p:4x4": (16, (4, 4, 1), "tpu", "tpu"),
    "v4:2x2x4": (16, (2, 2, 4), "tpu", "tpu"),
    "v5e:8x16": (128, (8, 16), "tpu", "tpu"),
    "v6e:16x16": (256, (16, 16), "tpu", "tpu"),
    # cloud names: TensorCores of v4 and v5p, two to a chip; chips of v5e and v6e
    "v5p-8": (4, (2, 2, 1), "tpu", "tpu"),
    "v5p-128": (64, (4, 4, 4), "tpu", "tpu"),
    "v5p-256": (128, (4, 4, 8), "tpu", "tpu"),
    "v5p-4096": (2048, (8, 16, 16), "tpu", "tpu"),
    "v4-64": (32, (2, 4, 4), "tpu", "tpu"),
    "v5litepod-64": (64, (8, 8), "tpu", "tpu"),
    "v5e-32": (32, (4, 8), "tpu", "tpu"),
    "v6e-256": (256, (16, 16), "tpu", "tpu"),
    "h100:64": (64, (8, 8), "cuda", "hopper"),
    "h200:8": (8, (1, 8), "cuda", "hopper"),
    "h200:2": (2, (1, 2), "cuda", "hopper"),
    "a100:16": (16, (2, 8), "cuda", "triton"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    target = parse_target(name)
    found = (target.num_devices, target.shape, target.platform, target.attention)
    assert found == NAMES[name]
    assert target.describe().startswith(f"{target.num_devices} {target.accelerator.name} ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b200:64", "unknown target 'b200:64'; known: v4:2x2x4, .*h100:64"),
        ("v7:4x4", "unknown target"),
        ("v7-64", "unknown target"),
        ("h200", "unknown target"),
        ("v6e:4x4x4", "v6e has topologies of 2 dimensions; got 3"),
        ("v5p:0x4x4", "topologies of 3 dimensions"),
        ("v5p-9", "counts TensorCores; expected a power of two, 8 or more"),
        ("v5p-4", "counts TensorCores"),
        ("v6e-48", "counts chips; expected a power of two, 4 or more, .*v6e:4x4"),
        ("h100:12", "1 to 8 GPUs, or a multiple of 8"),
        ("h100:0", "1 to 8 GPUs"),
    ],
)
def test_what_is_no_target_is_told(name, message):
    with pytest.raises(ValueError, match=message):
        parse_target(name)


@pytest.mark.parametrize(
    ("name", "packages"), [("v6e-64", "libtpu"), ("h200:64", "jax-cuda13-plugin")]
)
def test_without_the_compiler_the_file_to_install_is_named(monkeypatch, name, packages):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=f"{packages}.*pip install -r requirements-aot.txt"):
        target_devices(parse_target(name))


def test_only_whole_dimensions_are_rings():
    assert [parse_target("v5p:2x4x8").is_ring(i) for i in range(3)] == [False, True, True]
    assert [parse_target("v6e:8x16").is_ring(i) for i in range(2)] == [False, True]


@pytest.mark.parametrize("name", ["a100", "h100", "h200"])
def test_descriptions_say_the_memory_and_its_rate_of_the_table(name):
    text = dict(
        line.split(": ") for line in gpu_description(name).splitlines() if line.count(": ") == 1
    )
    row = hardware.accelerator(name)
    assert int(text["  device_memory_size"]) == pytest.approx(row.memory_bytes, rel=0.01)
    assert float(text["  memory_bandwidth"]) == pytest.approx(row.memory_bytes_per_s, rel=0.01)


def test_an_h100_is_an_h200_with_another_memory():
    lines = [gpu_description(name).splitlines() for name in ("h100", "h200")]
    first, second = ([x for x in text if not x.startswith("#")] for text in lines)
    differing = {a.split(":")[0].strip() for a, b in zip(first, second, strict=True) if a != b}
    assert differing == {"name", "device_memory_size", "memory_bandwidth", "device_description_str"}


def test_kinds_of_devices_are_known():
    kinds = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200 141GB HBM3e": "h200",
        "TPU v4": "v4",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "TPU v6 lite": "v6e",
    }
    for kind, name in kinds.items():
        assert hardware.accelerator_of(kind) is hardware.accelerator(name)
    assert hardware.accelerator_of("NVIDIA RTX A1000") is None
    with pytest.raises(ValueError, match="unknown accelerator 'b200'; known: h200, "):
        hardware.accelerator("b200")
