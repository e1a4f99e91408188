"""NVIDIA driver versions, and the CUDA level each driver branch brings.

A driver version has two or three numeric components with leading zeros: ``580.142``, ``535.54.03``. They are compared
number by number; as text, ``580.142`` would be older than ``580.95.05``. A compatibility package carries the version of
the driver it was built from, so both sides of every comparison here are driver versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

CudaLevel = tuple[int, int]
"""Major and minor version of CUDA."""

_VERSION = re.compile(r"\d{1,6}(?:\.\d{1,6}){1,2}", re.ASCII)

BRANCH_CUDA: Mapping[int, CudaLevel] = {
    470: (11, 4),
    510: (11, 6),
    515: (11, 7),
    520: (11, 8),
    525: (12, 0),
    530: (12, 1),
    535: (12, 2),
    545: (12, 3),
    550: (12, 4),
    555: (12, 5),
    560: (12, 6),
    565: (12, 7),
    570: (12, 8),
    575: (12, 9),
    580: (13, 0),
    590: (13, 1),
    595: (13, 2),
    610: (13, 3),
    615: (13, 4),
}
"""Driver branch -> CUDA level it was released with. Source: NVIDIA's guide "CUDA Compatibility", September 2026."""


@dataclass(frozen=True, slots=True, order=True)
class DriverVersion:
    """A driver version; compares and equals by its numbers, missing ones counting as zero.

    Attributes:
        numbers: three of them.
        text: as it was written.
    """

    numbers: tuple[int, int, int]
    text: str = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> DriverVersion | None:
        """Read a version; ``None`` unless the whole text (without white space around it) is one."""
        text = text.strip()
        if not _VERSION.fullmatch(text):
            return None
        major, minor, patch = [*map(int, text.split(".")), 0][:3]
        return cls((major, minor, patch), text)

    @property
    def branch(self) -> int:
        """The release branch, which is what compatibility lists speak of."""
        return self.numbers[0]

    @property
    def cuda(self) -> CudaLevel | None:
        """CUDA level of the branch; ``None`` for a branch this table does not know, because a guess may be wrong."""
        return BRANCH_CUDA.get(self.branch)

    def __str__(self) -> str:
        return self.text
