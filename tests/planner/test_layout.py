"""Tensor-parallel sizes: which ones fit which devices, and which one is recommended."""

from __future__ import annotations

from typing import Any

import pytest

from tokka.planner.gpus import GIB, GPU_NAMES, find_gpu
from tokka.planner.layout import Layout, lay_out
from tokka.planner.model_config import ModelConfig
from tokka.planner.presets import find_preset
from tokka.planner.sizing import measure


def layout_of(name: str, gpu: str, count: int, **options: Any) -> Layout:
    preset, device = find_preset(name), find_gpu(gpu)
    assert preset is not None
    assert device is not None
    return lay_out(measure(ModelConfig.of(preset.config), **options), device.memory_bytes, count)


def test_poro_34b_on_a_node_of_lumi() -> None:
    layout = layout_of("Poro-34B", "mi250x", 8)
    assert not layout.sizes[0].fits
    assert layout.sizes[0].invalid is None
    assert layout.least is not None
    assert layout.recommended is not None
    assert (layout.least.size, layout.recommended.size, layout.copies, layout.idle) == (2, 4, 2, 0)
    # 7 divides the heads, but not the vocabulary.
    assert [size.size for size in layout.sizes if size.invalid] == [3, 5, 6, 7]
    assert "2 would fit" in layout.reason


@pytest.mark.parametrize(
    ("name", "gpu", "count", "least", "recommended"),
    [
        ("Llama-3.1-8B-Instruct", "h100", 8, 1, 1),
        ("Llama-3.3-70B-Instruct", "h100", 8, 4, 4),
        ("Qwen2.5-32B-Instruct", "a100-80", 4, 1, 2),
        ("gpt-oss-20b", "l4", 4, 2, 2),
        ("Llama-Poro-2-70B-Instruct", "mi250x", 8, 4, 8),
    ],
)
def test_known_models_on_known_devices(name: str, gpu: str, count: int, least: int, recommended: int) -> None:
    layout = layout_of(name, gpu, count)
    assert layout.least is not None
    assert layout.recommended is not None
    assert (layout.least.size, layout.recommended.size) == (least, recommended)


def test_without_room_for_a_batch_the_one_that_holds_most_is_taken() -> None:
    layout = layout_of("Llama-3.1-405B-Instruct", "h100", 8, quantization="fp8", max_model_len=8192)
    assert layout.recommended is not None
    assert layout.recommended.size == 8
    assert not layout.recommended.has_room
    assert "no size" in layout.reason


def test_nothing_fits_and_the_numbers_say_why() -> None:
    layout = layout_of("Llama-3.1-405B-Instruct", "mi250x", 8)
    assert layout.recommended is None
    assert layout.least is None
    assert (layout.copies, layout.idle) == (0, 8)
    assert "756.0 GiB" in layout.reason


def test_a_shorter_context_makes_more_fit() -> None:
    # The weights fit, but a sequence of 131072 tokens does not.
    whole = layout_of("Llama-3.3-70B-Instruct", "h100", 2)
    assert whole.recommended is None
    assert 0 < whole.sizes[1].tokens < 131072
    short = layout_of("Llama-3.3-70B-Instruct", "h100", 2, max_model_len=whole.sizes[1].tokens)
    assert short.recommended is not None
    assert short.recommended.sequences == 1


def test_a_cache_of_a_given_size_decides() -> None:
    preset = find_preset("Poro-34B")
    assert preset is not None
    layout = lay_out(measure(ModelConfig.of(preset.config)), 64 * GIB, 8, cache_bytes=10 * GIB)
    assert layout.recommended is not None
    assert layout.recommended.size == 2
    assert layout.recommended.cache_bytes == 10 * GIB
    assert layout.reason.endswith("the requested KV cache")
    assert lay_out(measure(ModelConfig.of(preset.config)), 64 * GIB, 2, cache_bytes=40 * GIB).recommended is None


def test_devices_that_hold_no_whole_copy_are_idle() -> None:
    layout = layout_of("Poro-34B", "mi250x", 7)
    assert (layout.copies, layout.idle) == (1, 3)


@pytest.mark.parametrize(
    ("name", "known"),
    [("MI250X", "mi250x"), ("NVIDIA H100", "h100"), ("A100-80GB", "a100-80"), ("RTX 4090", "rtx4090"), ("x", None)],
)
def test_devices_are_found_as_people_write_them(name: str, known: str | None) -> None:
    gpu = find_gpu(name)
    assert (gpu.name if gpu else None) == known


def test_a_board_of_mi250x_is_two_devices_of_64_gb() -> None:
    gpu = find_gpu("mi250x")
    assert gpu is not None
    assert gpu.per_board == 2
    assert gpu.memory_gib == pytest.approx(64, abs=0.1)
    assert all(find_gpu(name) for name in GPU_NAMES)
