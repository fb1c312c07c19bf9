"""Layouts with similarities or distances in the place of features."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.side import Source
from ...data.similarities import ROUNDED, Matrix, SimilaritySet
from ...errors import InputError
from ..names import plain, role_of
from .containers import Opened
from .parts import Layout, Part, is_matrix, listed, settle_labels

_P, _G = "(?:query|probe|q|p)", "(?:gallery|test|database|g|db)"
_KINDS = {
    "distance": "dist(?:s|mat|ance|ances|ancematrix|matrix)?",
    "similarity": "sim(?:s|mat|ilarity|ilarities|ilaritymatrix)?|scores?|cos(?:ine|sim|inesimilarity)?",
}
_WORDS = f"(?:{'|'.join(_KINDS.values())})"
_ROLES = {
    "between": re.compile(f"{_P}{_G}{_WORDS}?|{_WORDS}"),
    "among_probes": re.compile(f"{_P}{_P}{_WORDS}?"),
    "among_gallery": re.compile(f"{_G}{_G}{_WORDS}?"),
}


def similarities(files: Sequence[Opened]) -> Layout | None:
    """Recognise matrices such as `distmat`, `q_g_dist` and `g_g_sim`, and labels by the names of side and kind.

    Files of one array each are called as fields are. Where there are features, matrices are left to be ignored.
    """
    found = Layout("similarities", {}, {})
    where = listed(file.path for file in files)
    for name, value in _values(files):
        role = matrix_role(name)
        label = role_of(name)
        if role is not None and is_matrix(value):
            if role in found.matrices:
                raise InputError(
                    f"{where}: {found.matrices[role].origin} and {name} could both be the same matrix: keep "
                    "one of them"
                )
            found.matrices[role] = Part(name, value)
        elif label is not None and label[1] == "features" and is_matrix(value):
            return None
        elif label is not None:
            side = found.probe if label[0] == "probe" else found.gallery
            side[label[1]] = Part(name, value)
        else:
            found.notes.append(f"ignored: {name}")
    if not found.matrices:
        return None
    if "between" not in found.matrices:
        raise InputError(f"{where}: no similarities of probes and gallery, such as q_g_dist or distmat")
    names = found.matrix_names
    if len({*map(kind_of, names)} - {None}) > 1:
        raise InputError(f"{where}: {listed(names)} are similarities and distances: give one kind")
    for parts in (found.probe, found.gallery):
        settle_labels(parts, where)
    counts = [{len(part.values) for part in parts.values()} for parts in (found.probe, found.gallery)]
    between = found.matrices["between"]
    probes, items = between.values.shape
    if probes != items and counts == [{items}, {probes}]:
        raise InputError(
            f"{where}: {between.origin} is {probes} x {items}, and there are {items} probes and {probes} "
            "gallery items: transpose it"
        )
    found.settled = True
    found.name = f"matrices {listed(names)}"
    return found


def matrix_role(name: Any) -> str | None:
    """Return which matrix a name such as `q_g_dist` is of, None if it is of none.

    >>> matrix_role("q_g_dist"), matrix_role("distmat"), matrix_role("gg"), matrix_role("qf")
    ('between', 'between', 'among_gallery', None)
    """
    word = plain(name)
    return next((role for role, form in _ROLES.items() if form.fullmatch(word)), None)


def kind_of(name: str) -> str | None:
    """Return what a matrix holds, as its name says: `distance`, `similarity`, or None if it does not.

    >>> kind_of("q_g_dist"), kind_of("scores"), kind_of("qg")
    ('distance', 'similarity', None)
    """
    return next((kind for kind, words in _KINDS.items() if re.search(words, plain(name))), None)


def similarity_set(
    matrices: Mapping[str, Part],
    where: str,
    matrix: str | None,
    about: Mapping[str, Any],
    sources: Sequence[Source],
    **labels: Any,
) -> SimilaritySet:
    """Build a set of matrices by their roles.

    Args:
        matrices: by role; from now on in memory, unless they are mapped.
        where: name of the files in messages.
        matrix: what they are, if somebody said it; otherwise as their names say, or similarities.
        about: where they came from.
        sources: the files that they are mapped from.
        **labels: as for `SimilaritySet.from_matrices`.

    Raises:
        InputError: for invalid matrices, or if neither names nor values say what they are.
    """
    said = [matrix, *(kind_of(part.origin) for part in matrices.values())]
    kind = next((one for one in said if one is not None), None)
    for role, part in matrices.items():
        values = part.values if isinstance(part.values, np.ndarray) else np.asarray(part.values[:])
        labels[role] = Matrix(values, label=part.origin)
    try:
        found = SimilaritySet.from_matrices(
            **labels, kind=kind or "similarity", provenance=about, sources=tuple(sources)
        )
    except InputError as error:
        raise InputError([f"{where}: {problem}" for problem in error.problems]) from None
    if kind is None and found.largest > 1 + ROUNDED:
        name = matrices["between"].origin
        raise InputError(
            f"{where}: {name} goes up to {found.largest:.4g}, so it may hold distances or similarities: say it "
            "with --matrix"
        )
    return found


def _values(files: Sequence[Opened]) -> list[tuple[str, Any]]:
    """All values by the names of fields, or of files that have one."""
    found = []
    for file in files:
        if not file.fields:
            found.append((file.path.stem, file.content))
        for name, value in file.fields.items():
            known = matrix_role(name) is not None or role_of(name) is not None
            found.append((file.path.stem if len(file.fields) == 1 and not known else str(name), value))
    return found
