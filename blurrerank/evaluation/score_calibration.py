"""From a score to a probability: how often the first item of a list is right, as a function of its score.

    isotonic   the non-decreasing function of least squared error, linear between its knots, constant beyond
    logistic   1 / (1 + exp(-(slope s + intercept))) of the score s, of least logarithmic loss and a penalty of
               half the square of the slope, for standardised scores, which keeps it finite where they separate

Fitting needs scikit-learn, an extra: `pip install "blurrerank[calibrate]"`. It is imported only then.

Sources: Zadrozny, Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates", KDD
2002 (isotonic); Platt, "Probabilistic Outputs for Support Vector Machines", 1999 (logistic).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ..data.ranking import Ranking
from ..errors import BlurrerankError, BlurrerankWarning, InputError, ParameterError

KINDS = ("isotonic", "logistic")

GALLERY_FACTOR = 2
"""By how much galleries may differ in size without a warning."""


@dataclass(frozen=True)
class ScoreCalibration:
    """The probability that the first item of a list has the probe's identity, by its score.

    Attributes:
        kind: `isotonic` or `logistic`.
        numbers: of isotonic, `scores` (rising) and `probabilities`, the knots; of logistic, `slope` and
            `intercept`.
        method, params, setting: of the lists that it was fitted on, as in `Ranking`.
        dim: dimensions of the features that these were made from; 0 for similarities.
        gallery_size: how many items their gallery had.
        protocol: the protocol that said which items counted.
        probes: how many probes it was fitted on.
        right: how many of these had a right first item.
        source: its name in messages.

    Raises:
        InputError: on construction, for numbers that are not of the kind.
    """

    kind: str
    numbers: Mapping[str, Any]
    method: str
    params: Mapping[str, Any]
    setting: str | None
    dim: int
    gallery_size: int
    protocol: str
    probes: int
    right: int
    source: str = "the calibration"

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.kind not in KINDS or not _are_sound(self.kind, self.numbers):
            raise InputError(f"{self.source} is damaged: it has no isotonic or logistic fit; calibrate again")

    def check_fits(
        self,
        method: str,
        params: Mapping[str, Any],
        setting: str | None,
        *,
        gallery_size: int,
        dim: int | None = None,
    ) -> None:
        """Check that lists are such as this was fitted on.

        Issues a `BlurrerankWarning` if the sizes of the galleries differ by more than `GALLERY_FACTOR`.

        Args:
            method: what made the lists, as in `Ranking`; also `params` and `setting`.
            params: of these, the length of lists by cosine similarity does not count, as it changes no score.
            setting: as in `Ranking`.
            gallery_size: the size of their gallery.
            dim: dimensions of the features, if known; 0 for similarities.

        Raises:
            InputError: saying what differs.
        """
        fitted, here = _scoring(method, self.params), _scoring(method, params)
        if method != self.method:
            what = f"method {self.method}, and these are of {method}"
        elif differing := [name for name in {**fitted, **here} if fitted.get(name) != here.get(name)]:
            name = differing[0]
            what = f"{method} with {name} {fitted.get(name)}, and these have {here.get(name)}"
        elif setting != self.setting:
            unknown = "not known to be transductive or online"
            what = f"{method}, {self.setting or unknown}, and these are {setting or unknown}"
        elif dim and self.dim and dim != self.dim:
            what = f"features of {self.dim} dimensions, and these have {dim}"
        else:
            self._warn_of_size(gallery_size)
            return
        raise InputError(f"{self.source} was fitted on lists of {what}: run `calibrate` for these lists")

    def _warn_of_size(self, gallery_size: int) -> None:
        less, more = sorted((self.gallery_size, gallery_size))
        if more > GALLERY_FACTOR * less:
            wrong = "high" if gallery_size > self.gallery_size else "low"
            warnings.warn(
                f"{self.source} was fitted with a gallery of {self.gallery_size} items, and this one has "
                f"{gallery_size}: the best score of an unknown probe rises with the size of the gallery, so "
                f"probabilities are probably too {wrong}; calibrate with a gallery of about this size",
                BlurrerankWarning,
                stacklevel=4,
            )

    def probability(self, ranking: Ranking) -> NDArray[np.float32]:
        """Return (P,) float32, the probability that the first item of each list is right; 0 of an empty list.

        Issues a `BlurrerankWarning` if the gallery is much larger or smaller than that of the fit.

        Raises:
            InputError: if the lists are of another method, or other parameters, than this was fitted on.
        """
        self.check_fits(ranking.method, ranking.params, ranking.setting, gallery_size=ranking.gallery_size)
        return self.of_scores(ranking.scores[:, 0])

    def of_scores(self, scores: NDArray[Any]) -> NDArray[np.float32]:
        """Return float32 probabilities for scores of first items; 0 for -inf, which is of an empty list."""
        known = np.where(np.isneginf(scores), 0, scores).astype(np.float64)
        if self.kind == "isotonic":
            found = np.interp(known, self.numbers["scores"], self.numbers["probabilities"])
        else:
            found = expit(self.numbers["slope"] * known + self.numbers["intercept"])
        return np.where(np.isneginf(scores), 0, found).astype(np.float32)


@dataclass(frozen=True)
class Verdicts:
    """What a calibration says of the lists of some probes.

    Attributes:
        probability: (p,) float32, that the first item is right.
        rejected: (p,) bool, whether that is below what was asked for.
    """

    probability: NDArray[np.float32]
    rejected: NDArray[np.bool_]

    @classmethod
    def concatenate(cls, parts: Sequence[Verdicts]) -> Verdicts:
        """Join those of consecutive probes."""
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def of(self, row: int) -> tuple[np.float32, bool]:
        """Return probability and rejection of one probe."""
        return self.probability[row], bool(self.rejected[row])

    def blanked(self, indices: NDArray[Any]) -> NDArray[Any]:
        """Return (p, R) lists with -1 in the place of every item of a rejected one."""
        return np.where(self.rejected[:, None], -1, indices)


@dataclass(frozen=True)
class Rejection:
    """Which lists are rejected: those whose first item is right with too small a probability.

    Attributes:
        calibration: gives the probability of a score.
        least: the probability, from 0 to 1, below which a list is rejected.

    Raises:
        ParameterError: on construction, for a `least` beyond that.
    """

    calibration: ScoreCalibration
    least: float

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.least <= 1:
            raise ParameterError(f"reject {self.least} is not a probability: give a number from 0 to 1")

    def verdicts(self, scores: NDArray[np.float32]) -> Verdicts:
        """Return the verdicts on lists with (p, R) scores."""
        probability = self.calibration.of_scores(scores[:, 0])
        return Verdicts(probability, probability < np.float32(self.least))


def check_can_fit(kind: str) -> None:
    """Check, before any work, that a calibration can be fitted.

    Raises:
        ParameterError: for a kind that is not one of `KINDS`.
        BlurrerankError: if scikit-learn is not installed; names the extra.
    """
    if kind not in KINDS:
        raise ParameterError(f"calibration {kind!r} is not known: use {' or '.join(KINDS)}")
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise BlurrerankError(
            'calibration needs scikit-learn, which is not installed: pip install "blurrerank[calibrate]"'
        ) from None


def fit_numbers(kind: str, scores: NDArray[np.float32], right: NDArray[np.bool_]) -> dict[str, Any]:
    """Fit a function of the score to whether the first item was right.

    Args:
        kind: `isotonic` or `logistic`, which `check_can_fit` has checked.
        scores: (n,) finite.
        right: (n,), of both values.

    Returns:
        `ScoreCalibration.numbers`.
    """
    wide = scores.astype(np.float64)
    if kind == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(wide, right)
        return {
            "scores": fitted.X_thresholds_.tolist(),
            "probabilities": fitted.y_thresholds_.tolist(),
        }
    from sklearn.linear_model import LogisticRegression

    mean, deviation = float(wide.mean()), float(wide.std()) or 1.0
    fitted = LogisticRegression().fit(((wide - mean) / deviation)[:, None], right)
    slope = float(fitted.coef_[0, 0]) / deviation
    return {"slope": slope, "intercept": float(fitted.intercept_[0]) - slope * mean}


def _are_sound(kind: str, numbers: Mapping[str, Any]) -> bool:
    """Whether numbers are those of a kind of fit."""
    names = ("scores", "probabilities") if kind == "isotonic" else ("slope", "intercept")
    try:
        first, second = (np.asarray(numbers[name], dtype=np.float64) for name in names)
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    if first.shape != second.shape or not (np.isfinite(first) & np.isfinite(second)).all():
        return False
    if kind == "logistic":
        return first.ndim == 0
    rising = first.ndim == 1 and len(first) > 0 and (np.diff(first) > 0).all() and (np.diff(second) >= 0).all()
    return bool(rising and second[0] >= 0 and second[-1] <= 1)


def _scoring(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they are in a file, without those that change no score."""
    described: dict[str, Any] = json.loads(json.dumps(dict(params)))
    # Alone, and at the end of a chain: how many items are listed.
    free = "topn" if method == "cosine" else "cosine.topn"
    described.pop(free, None)
    return described
