"""The machine record: stable id over the hardware, plain data."""

import dataclasses
import json
import platform

import torch

from fpn_bench.profiling import machine


def test_record_of_this_machine() -> None:
    record = machine()
    assert record.cpu
    assert 1 <= record.cores <= record.logical_cores
    assert record.memory_gib >= 1
    assert bool(record.gpu) == torch.cuda.is_available()
    assert record.python == platform.python_version()
    assert record.versions["torch"] == torch.__version__.partition("+")[0]
    assert {"fpn_bench", "torchvision", "timm"} <= set(record.versions)
    assert machine() is record


def test_id_is_the_hardwares() -> None:
    record = machine()
    assert len(record.id) == 8
    assert dataclasses.replace(record, versions={"torch": "9"}, os="another", python="4").id == record.id
    assert dataclasses.replace(record, gpu="another").id != record.id
    assert dataclasses.replace(record, memory_gib=record.memory_gib + 1).id != record.id


def test_plain_data() -> None:
    data = json.loads(json.dumps(machine().to_dict()))
    assert (data["id"], data["label"]) == (machine().id, machine().label)
    assert data["versions"] == dict(machine().versions)
