"""A plugin for vLLM's servers in the comparisons. vLLM loads it in each of its processes."""

from __future__ import annotations


def enable_amx() -> None:
    """Request AMX tiles from the kernel. vLLM uses them without a request and dies of SIGILL on small models."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
