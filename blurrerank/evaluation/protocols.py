"""Evaluation protocols: which gallery items count for which probe."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ParameterError


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol. Every protocol ignores junk (id -1).

    Attributes:
        name: the usual name of the protocol.
        drops_same_camera: whether gallery items with the probe's identity and camera are dropped.
        single_shot: whether CMC draws one gallery image per identity. AP and INP use all images.
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
    """Return the protocol called `name`.

    Raises:
        ParameterError: if there is no such protocol.

    >>> get_protocol("cuhk03").single_shot
    True
    """
    if name not in PROTOCOLS:
        raise ParameterError(f"protocol {name!r} is not known: use {' or '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
