"""Driver versions: how they are read and compared."""

from __future__ import annotations

import pytest

from byoc_server.device.version import BRANCH_CUDA, DriverVersion


def version(text: str) -> DriverVersion:
    parsed = DriverVersion.parse(text)
    assert parsed is not None
    return parsed


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("580.95.05", "580.142"),
        ("570.86.10", "570.124.06"),
        ("99.55.66", "222.88.99"),
        ("535.54", "535.54.03"),
        ("535.54.03", "535.183.01"),
        ("470.239.06", "580.65.06"),
    ],
)
def test_order(older: str, newer: str) -> None:
    """By numbers: as text, the first three pairs are the other way round."""
    assert version(older) < version(newer)
    assert version(newer) > version(older)
    assert version(older) != version(newer)


@pytest.mark.parametrize(("one", "other"), [("535.54.03", "535.54.3"), ("575.64", "575.64.00"), ("580.142", "580.142")])
def test_equal(one: str, other: str) -> None:
    """Leading zeros and a missing third number make no difference, not even in a set."""
    assert version(one) == version(other)
    assert not version(one) < version(other)
    assert len({version(one), version(other)}) == 1


@pytest.mark.parametrize("text", ["535.54.03", "580.142", "  575.57.08\n", "34.1.1"])
def test_parse(text: str) -> None:
    assert str(version(text)) == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "535",
        "535.",
        ".54",
        "535..03",
        "535.54.03.01",
        "[N/A]",
        "535.54 .03",
        "535.54.03-rc1",
        "v535.54.03",
        "-535.54",
        "+535.54",
        "5_35.54",
        "٥٣٥.٥٤",  # digits, but not ASCII
        "1234567.1",
        "535.54.03\n550.54.15",
        "No devices were found",
    ],
)
def test_refusals(text: str) -> None:
    assert DriverVersion.parse(text) is None


def test_numbers() -> None:
    assert version("535.54.03").numbers == (535, 54, 3)
    assert version("580.142").numbers == (580, 142, 0)


def test_cuda_level() -> None:
    assert version("575.57.08").branch == 575
    assert version("575.57.08").cuda == (12, 9)
    assert version("580.142").cuda == (13, 0)
    assert version("999.1").cuda is None


def test_newer_branches_bring_newer_cuda() -> None:
    levels = [BRANCH_CUDA[branch] for branch in sorted(BRANCH_CUDA)]
    assert levels == sorted(set(levels))
