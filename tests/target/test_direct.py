"""What devices add up by reading each other: what fits, and who does without."""

import pytest
import torch

from eagle.target import direct
from eagle.target.direct import Direct


@pytest.fixture
def device():
    """One whose buffer has 64 bytes."""
    return Direct(torch.zeros(64, dtype=torch.uint8), "0")


@pytest.mark.parametrize(
    ("x", "fits"),
    [
        (torch.zeros(2, 8, dtype=torch.bfloat16), True),
        (torch.zeros(16), True),
        (torch.zeros(17), False),  # larger than the buffer
        (torch.zeros(0), False),
        (torch.zeros(3), False),  # 12 bytes: the kernel reads 16
        (torch.zeros(8, dtype=torch.float16), False),
        (torch.zeros(8, dtype=torch.float64), False),
        (torch.zeros(4, 4).T, False),
        (torch.zeros(9)[1:], False),
        (torch.zeros(8)[4:], True),
    ],
)
def test_what_does_not_fit_is_left_to_nccl(device, x, fits):
    assert device.fits(x) is fits


def test_nobody_opens_it_where_one_process_cannot(monkeypatch):
    asked = []

    def least(value):
        asked.append(bool(value))
        return 0

    monkeypatch.setattr(direct, "_reachable", lambda count: True)
    assert Direct.open(2, least) is None
    assert asked == [True], "what all have to do was begun, though not by all"


@pytest.mark.parametrize(
    ("here", "asked", "reached"),
    [
        ("2", "1", True),
        (None, "1", False),
        ("1", "1", False),
        ("2", None, False),
        ("2", "0", False),
    ],
)
def test_only_processes_of_one_host_that_ask_for_it_are_reached(monkeypatch, here, asked, reached):
    for name, value in (("LOCAL_WORLD_SIZE", here), (direct.ASKED, asked)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda own, other: own != other)
    assert direct._reachable(2) is reached
    assert not direct._reachable(16)
