"""Which gallery items count for which probe."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ParameterError


@dataclass(frozen=True)
class Protocol:
    """How the lists of a benchmark are measured. Junk (id -1) never counts, whatever the protocol.

    Attributes:
        name: what the field calls it.
        drops_same_camera: whether gallery items of the probe's own identity and camera are left out.
        single_shot: whether CMC draws one gallery image of each identity. AP and INP use all of them.
    """

    name: str
    drops_same_camera: bool
    single_shot: bool


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("market1501", drops_same_camera=True, single_shot=False),
        Protocol("cuhk03", drops_same_camera=True, single_shot=True),
        Protocol("plain", drops_same_camera=False, single_shot=False),
    )
}


def get_protocol(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        ParameterError: if there is none of that name.

    >>> get_protocol("cuhk03").single_shot
    True
    """
    if name not in PROTOCOLS:
        raise ParameterError(f"protocol {name!r} is not known: use {' or '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
