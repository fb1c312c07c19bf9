"""`FeatureSet`: probe and gallery features with their labels, validated once."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import BlurrerankWarning, InputError
from .arrays import as_array
from .checks import flat_shape
from .numbering import is_text, numbered, unidentified
from .side import KEPT, FeatureArray, Side
from .tracks import by_track
from .validation import find_problems


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Probe and gallery features with their labels, validated on construction.

    Code that receives a `FeatureSet` need not check it again.

    Attributes:
        probe: the probe side.
        gallery: the gallery side.
        provenance: where the features came from, as attribute name -> value.
        texts: the text of each number, for `ids` and `cams` that were text.

    Raises:
        InputError: listing all problems at once, each with the side and the first rows affected.
    """

    probe: Side
    gallery: Side
    provenance: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Number labels that are text, and validate both sides."""
        if not (isinstance(self.probe, Side) and isinstance(self.gallery, Side)):
            raise InputError(
                "a FeatureSet consists of two Sides: for arrays, use br.FeatureSet.from_arrays(probe, gallery)"
            )
        # Of an index, whose numbers stay as they are; sides of one set are numbered together already.
        if self.gallery.unit and self.probe.texts is not self.gallery.texts:
            object.__setattr__(self, "probe", self.probe.numbered(self.gallery))
            object.__setattr__(self, "texts", {**self.texts, **self.gallery.texts, **self.probe.texts})
        for kind in KEPT:
            self._number(kind)
        for name in ("probe", "gallery"):
            side = getattr(self, name)
            if self.texts and not side.unit and side.texts is not self.texts:
                object.__setattr__(self, name, replace(side, texts=self.texts))
        problems = self._problems()
        if problems:
            raise InputError(problems)

    def _problems(self) -> list[str]:
        """What is wrong with the sides, one line each."""
        return find_problems(self.probe, self.gallery)

    def _number(self, kind: str) -> None:
        """Replace the ids or cams of both sides, if they are text, by numbers."""
        sides = [self.probe, self.gallery]
        texts = [getattr(side, kind) for side in sides if getattr(side, kind) is not None]
        if not texts or not all(map(is_text, texts)):
            return
        found = numbered(texts, keep=KEPT[kind])
        for doubt in unidentified(texts, kind[:-1]) if found.texts else ():
            warnings.warn(doubt, BlurrerankWarning, stacklevel=4)
        object.__setattr__(self, "texts", {**self.texts, kind: found.texts})
        numbers = iter(found.labels)
        for name, side in zip(("probe", "gallery"), sides, strict=True):
            if getattr(side, kind) is not None:
                changes: dict[str, Any] = {kind: next(numbers)}
                object.__setattr__(self, name, replace(side, **changes))

    def __repr__(self) -> str:
        labels = [name for name in ("ids", "cams", "names") if getattr(self.gallery, name) is not None]
        return (
            f"FeatureSet({len(self.probe)} probes x {len(self.gallery)} gallery x {self.dim}, "
            f"{self.gallery.features.dtype}, with {', '.join(labels) or 'no labels'})"
        )

    @classmethod
    def from_arrays(
        cls,
        probe: ArrayLike | torch.Tensor,
        gallery: ArrayLike | torch.Tensor,
        *,
        probe_ids: ArrayLike | None = None,
        gallery_ids: ArrayLike | None = None,
        probe_cams: ArrayLike | None = None,
        gallery_cams: ArrayLike | None = None,
        probe_names: ArrayLike | None = None,
        gallery_names: ArrayLike | None = None,
        probe_tracks: ArrayLike | None = None,
        gallery_tracks: ArrayLike | None = None,
    ) -> FeatureSet:
        """Build a feature set from arrays or tensors, without copying where possible.

        Args:
            probe: (P, D) float16, float32 or float64, or bfloat16, which becomes float32; also (P, D, 1, 1).
            gallery: (G, D), the same dimension.
            probe_ids: (P,) integers, the identities, or strings, which are numbered from 1 over both sides.
            gallery_ids: (G,) integers or strings.
            probe_cams: (P,) integers, the cameras, or strings likewise.
            gallery_cams: (G,) integers or strings.
            probe_names: (P,) strings.
            gallery_names: (G,) strings.
            probe_tracks: (P,) integers or strings, equal for images of one tracklet, or of one query.
            gallery_tracks: (G,) integers or strings.

        Raises:
            InputError: see the class.

        Examples:
            >>> probe, gallery = np.eye(2, 3), np.eye(3)
            >>> FeatureSet.from_arrays(probe, gallery, probe_ids=[1, 2], gallery_ids=[1, 2, 0])
            FeatureSet(2 probes x 3 gallery x 3, float64, with ids)
            >>> FeatureSet.from_arrays(probe, gallery, probe_ids=[1, 2.5])
            Traceback (most recent call last):
            blurrerank.errors.InputError: probe/ids has 2.5 in row 1: expected integers
        """
        return cls(
            Side(
                _features(probe, "probe"),
                labels_of(probe_ids),
                labels_of(probe_cams),
                labels_of(probe_names),
                label="probe",
                tracks=labels_of(probe_tracks),
            ),
            Side(
                _features(gallery, "gallery"),
                labels_of(gallery_ids),
                labels_of(gallery_cams),
                labels_of(gallery_names),
                label="gallery",
                tracks=labels_of(gallery_tracks),
            ),
        )

    def by_track(self, *sides: str) -> FeatureSet:
        """Return the set with the images of each track as one, whose feature is their mean.

        Args:
            *sides: `probe`, `gallery` or both; by default those that have tracks. A probe of several images of
                one identity and camera is what data sets call multi-query.

        Raises:
            InputError: if there are no tracks, or images of one differ in identity or camera.

        Examples:
            >>> data = FeatureSet.from_arrays(np.eye(1, 3), np.eye(3), gallery_tracks=["a", "a", "b"])
            >>> data.by_track().gallery.features.tolist()
            [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
        """
        both = {"probe": self.probe, "gallery": self.gallery}
        wanted = sides or [name for name, side in both.items() if side.tracks is not None]
        if not wanted:
            raise InputError("neither side has tracks: store (N,) tracks beside the features")
        both |= {name: by_track(both[name]) for name in wanted}
        return FeatureSet(both["probe"], both["gallery"], {**self.provenance, "by": "track"}, self.texts)

    @property
    def dim(self) -> int:
        """D, the number of dimensions of both sides."""
        return self.probe.dim

    @property
    def has_ids(self) -> bool:
        """Whether both sides have identities, so that a ranking can be measured."""
        return self.probe.ids is not None and self.gallery.ids is not None

    @property
    def has_cams(self) -> bool:
        """Whether both sides have cameras."""
        return self.probe.cams is not None and self.gallery.cams is not None

    def lacking(self, labels: str) -> str:
        """Say which side has no `ids` or `cams`, for a message; at least one side must lack them."""
        word = {"ids": "ids", "cams": "cameras"}[labels]
        probe, gallery = (getattr(side, labels) is None for side in (self.probe, self.gallery))
        if probe and gallery:
            return f"there are no {word}"
        return f"the probes have no {word}" if probe else f"the gallery has no {word}"

    def check(self) -> None:
        """Check that the features of both sides are unchanged; see `Side.check`."""
        self.probe.check()
        self.gallery.check()

    def digest(self) -> str:
        """Return the SHA-256 of both sides' digests, which identifies what a ranking was made from."""
        return hashlib.sha256(f"{self.probe.digest()} {self.gallery.digest()}".encode()).hexdigest()

    def labels_digest(self) -> str:
        """Return the SHA-256 of both sides' ids and cameras, which identifies the labels metrics depend on."""
        digest = hashlib.sha256()
        ids, cams = self._numbered_together("ids"), self._numbered_together("cams")
        for labels in (ids[0], cams[0], ids[1], cams[1]):
            digest.update(b"none" if labels is None else np.asarray(labels, dtype="<i8").tobytes())
        return digest.hexdigest()

    def _numbered_together(self, kind: str) -> list[NDArray[Any] | None]:
        """The labels of both sides; of text, the numbers that it has in one file, whatever an index gave it."""
        labels = [side.as_text(kind) for side in (self.probe, self.gallery)]
        texts = [values for values in labels if values is not None]
        if not all(map(is_text, texts)):
            return [getattr(side, kind) for side in (self.probe, self.gallery)]
        numbers = iter(numbered(texts, keep=KEPT[kind]).labels)
        return [None if values is None else next(numbers) for values in labels]


def _features(values: ArrayLike | torch.Tensor, name: str) -> FeatureArray:
    found = as_array(values, name)
    if isinstance(found, torch.Tensor) and found.dtype == torch.bfloat16:
        found = found.float()
    return found.reshape(flat_shape(tuple(found.shape)) or found.shape)


def labels_of(values: ArrayLike | None) -> NDArray[Any] | None:
    """Return labels or names, arrays or tensors, as an array; None for none."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return None if values is None else np.asarray(values)
