"""A controller with bounds of a test's own."""

from __future__ import annotations

from tokka.admission.controller import AdmissionController
from tokka.admission.policy import AdmissionPolicy, Bounds, Targets


def controller(max_running: int, max_waiting: int = 0, queue_timeout_s: float = 60) -> AdmissionController:
    admission = AdmissionController(AdmissionPolicy(Bounds(max_waiting), Targets()), queue_timeout_s=queue_timeout_s)
    admission.resize(max_running)
    return admission
