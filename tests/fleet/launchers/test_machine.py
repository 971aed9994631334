"""The GPUs and the memory that the local launcher may give away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tokka.engine.host import total_memory_bytes
from tokka.errors import ConfigurationError
from tokka.fleet.launchers import machine
from tokka.fleet.launchers.machine import Machine, find_machine
from tokka.fleet.spec import Resources

GIB = 1 << 30
CUDA, HIP, ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("environment", "devices", "variables"),
    [
        ({CUDA: "4,5"}, ("4", "5"), (CUDA,)),
        ({CUDA: " 4, GPU-ab "}, ("4", "GPU-ab"), (CUDA,)),
        ({CUDA: ""}, (), (CUDA,)),
        ({CUDA: "0,-1,1"}, ("0",), (CUDA,)),
        ({CUDA: "NoDevFiles"}, (), (CUDA,)),
        ({HIP: "2,3"}, ("2", "3"), (HIP,)),
        ({HIP: "2,3", CUDA: "2,3"}, ("2", "3"), (CUDA, HIP)),
        ({ROCR: "6,7"}, ("6", "7"), (ROCR,)),
        # HIP numbers the GPUs that ROCR leaves from 0, so ROCR's list must stay as it is.
        ({ROCR: "6,7", HIP: "0,1"}, ("0", "1"), (HIP,)),
    ],
)
def test_visible_gpus_are_the_ones_to_hand_out(
    environment: Mapping[str, str], devices: tuple[str, ...], variables: tuple[str, ...]
) -> None:
    assert find_machine(environment) == Machine(devices, total_memory_bytes(), variables)


def test_worker_sees_its_gpus_in_each_variable_or_none() -> None:
    found = Machine(("4", "5"), GIB, (CUDA, HIP))
    assert found.environment(("4", "5")) == {CUDA: "4,5", HIP: "4,5"}
    assert found.environment(()) == {CUDA: "-1", HIP: "-1"}


def test_total_takes_the_place_of_detection() -> None:
    assert find_machine({}, Resources(2, GIB)) == Machine(("0", "1"), GIB)
    assert find_machine({CUDA: "4,5,6"}, Resources(2, GIB)).devices == ("4", "5")
    assert find_machine({}, Resources(0)).memory_bytes == total_memory_bytes()


def test_more_gpus_than_the_gateway_sees_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"has 3 GPUs, but CUDA_VISIBLE_DEVICES=4,5 shows 2"):
        find_machine({CUDA: "4,5"}, Resources(3))


def test_nvidia_smi_counts_the_gpus(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n[ $1 = -L ] && echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)' && echo '  MIG 1g.10gb     Device"
        "  0: (UUID: MIG-1)' && echo 'GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)'\n"
    )
    program.chmod(0o755)
    assert find_machine({"PATH": f"{tmp_path}:/bin:/usr/bin"}).devices == ("0", "1")
    program.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert find_machine({"PATH": f"{tmp_path}:/bin:/usr/bin"}).devices == ()
    assert find_machine({"PATH": "/missing"}).devices == ()


def test_amd_gpus_count_if_their_device_file_opens(tmp_path: Path) -> None:
    nodes, devices = tmp_path / "nodes", tmp_path / "dri"
    devices.mkdir()
    # The processor, a GPU of this container, and one of another.
    for number, minor in enumerate((0, 128, 129)):
        (nodes / str(number)).mkdir(parents=True)
        (nodes / str(number) / "properties").write_text(f"cpu_cores_count 64\ndrm_render_minor {minor}\n")
    (devices / "renderD128").touch()
    assert machine._count_amd(nodes, devices) == 1
