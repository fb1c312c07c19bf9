"""Evaluation protocols: which gallery items count for which probe."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ParameterError


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol. Every protocol ignores junk (id -1).

    Attributes:
        name: the usual name of the protocol.
        drops: what gallery items are dropped that have the probe's identity: those of its `camera`, its own
            `image`, or none.
        single_shot: whether CMC draws one gallery image per identity. AP and INP use all images.
    """

    name: str
    drops: str | None
    single_shot: bool


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("market1501", drops="camera", single_shot=False),
        Protocol("cuhk03", drops="camera", single_shot=True),
        Protocol("leave-one-out", drops="image", single_shot=False),
        Protocol("plain", drops=None, single_shot=False),
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
