"""What people call the sides and parts of features, in files of any format."""

from __future__ import annotations

import re
from typing import Any

SIDES = {"probe": "query|probe|prob|q", "gallery": "gallery|gal|test|g"}
KINDS = {
    "features": "fea|feat|feats|feature|features|embd|embds|embedding|embeddings",
    "ids": "id|ids|pid|pids|label|labels",
    "cams": "cam|cams|camid|camids|camera|cameras",
    "tracks": "track|tracks|tracklet|tracklets|trackid|trackids",
    "names": "path|paths|name|names|img|imgs|imgpath|imgpaths|imagename|imagenames|filename|filenames|filelist",
}
_NAMED = {
    (side, kind): re.compile(f"(?:{prefix})(?:{kinds}{'|f' * (kind == 'features')})")
    for side, prefix in SIDES.items()
    for kind, kinds in KINDS.items()
}


def plain(name: Any) -> str:
    """Reduce a name (in a pickle possibly a number) to lower-case letters and digits."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def role_of(name: Any) -> tuple[str, str] | None:
    """Return the side and the kind that a name such as `query_f` says, None if it does not.

    >>> role_of("q_pids"), role_of("gallery"), role_of("feats")
    (('probe', 'ids'), ('gallery', 'features'), None)
    """
    word = plain(name)
    side = side_of(word)
    if side is not None and len(word) > 1:
        return side, "features"
    return next((role for role, form in _NAMED.items() if form.fullmatch(word)), None)


def side_of(name: Any) -> str | None:
    """Return the side that a name such as `query` is another word for."""
    return next((side for side, words in SIDES.items() if plain(name) in words.split("|")), None)


def kind_of(name: Any) -> str | None:
    """Return the kind that a name such as `camids` is another word for."""
    return next((kind for kind, words in KINDS.items() if plain(name) in words.split("|")), None)
