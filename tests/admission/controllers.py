"""Builds an admission controller with the bounds that a test gives."""

from __future__ import annotations

from tokka.admission.controller import AdmissionController
from tokka.admission.policy import AdmissionPolicy, Bounds
from tokka.admission.targets import Targets
from tokka.engine_facts import ModelInfo


def engine_of(max_running: int) -> ModelInfo:
    return ModelInfo(4096, 256, "test", "", False, max_running)


def controller(max_running: int, max_waiting: int = 0, queue_timeout_s: float = 60) -> AdmissionController:
    admission = AdmissionController(AdmissionPolicy(Bounds(max_waiting), Targets()), queue_timeout_s=queue_timeout_s)
    admission.resize(engine_of(max_running))
    return admission
