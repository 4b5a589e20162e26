"""Which licence a repository is under, from the text of its licence file: an SPDX identifier, "" where unknown."""

from __future__ import annotations

import re
from collections.abc import Iterable

PERMISSIVE = ("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT", "MIT-0", "NCSA",
              "PostgreSQL", "PSF-2.0", "Python-2.0", "Unlicense", "UPL-1.0", "WTFPL", "Zlib")  # fmt: skip
WEAK_COPYLEFT = ("EPL-1.0", "EPL-2.0", "LGPL-2.1", "LGPL-3.0", "MPL-1.1", "MPL-2.0", "CDDL-1.0", "EUPL-1.2")
COPYLEFT = ("AGPL-3.0", "GPL-2.0", "GPL-3.0")
GROUPS = {"permissive": PERMISSIVE, "weak_copyleft": WEAK_COPYLEFT, "copyleft": COPYLEFT}

_FILE_NAME = re.compile(r"(?:(?:un|mit-)?licen[sc]e|copying)(?:-[\w.]{1,20})?(?:\.(?:md|txt|rst|lesser|mit|apache|bsd))?")
# The first that fits decides, so what quotes or contains another stands before it. White space counts as one blank.
_PHRASES = (
    ("AGPL-3.0", ("gnu affero general public license version 3,",)),
    ("LGPL-3.0", ("gnu lesser general public license version 3,",)),
    ("LGPL-3.0", ("this version of the gnu lesser general public license incorporates",)),
    ("LGPL-2.1", ("gnu lesser general public license version 2.1,",)),
    ("GPL-3.0", ("gnu general public license version 3,", "everyone is permitted to copy")),
    ("GPL-2.0", ("gnu general public license version 2,", "everyone is permitted to copy")),
    ("Apache-2.0", ("apache license version 2.0", "reproduction, and distribution")),
    ("Apache-2.0", ("licensed under the apache license, version 2.0",)),
    ("MPL-2.0", ("mozilla public license version 2.0",)),
    ("MPL-1.1", ("mozilla public license version 1.1",)),
    ("EPL-2.0", ("eclipse public license - v 2.0",)),
    ("EPL-1.0", ("eclipse public license - v 1.0",)),
    ("EUPL-1.2", ("european union public licence v. 1.2",)),
    ("CDDL-1.0", ("common development and distribution license", "version 1.0")),
    ("BSL-1.0", ("boost software license - version 1.0",)),
    ("CC0-1.0", ("creative commons", "cc0 1.0 universal")),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("WTFPL", ("do what the fuck you want to public license",)),
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("UPL-1.0", ("universal permissive license",)),
    ("PostgreSQL", ("postgresql license", "permission to use, copy, modify, and distribute this software")),
    ("NCSA", ("university of illinois/ncsa open source license",)),
    ("Zlib", ("the origin of this software must not be misrepresented",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "neither the name")),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "may not be used to endorse or promote")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms", "must retain the above copyright")),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software", "appear in all copies")),
    ("ISC", ("permission to use, copy, modify, and distribute this software", "appear in all copies")),
    ("0BSD", ("permission to use, copy, modify, and/or distribute this software",)),
    ("MIT", ("permission is hereby granted, free of charge", "the above copyright notice and this permission notice")),
    ("MIT-0", ("permission is hereby granted, free of charge", "without warranty of any kind")),
)  # fmt: skip
_CHARS = 60_000


def is_licence_file(path: str) -> bool:
    """Whether a path at the root of a tree is where a licence is kept (LICENSE, COPYING, LICENCE.md, UNLICENSE …)."""
    return _FILE_NAME.fullmatch(path.lower()) is not None


def identify(text: str) -> str:
    """The licence whose characteristic phrases a text has; an SPDX identifier without "-only" or "-or-later"."""
    plain = " ".join(re.sub(r"[*_#>`\"]", " ", text[:_CHARS]).lower().split())
    return next((name for name, phrases in _PHRASES if all(phrase in plain for phrase in phrases)), "")


def normal(name: str) -> str:
    """An SPDX identifier as in GROUPS, whatever its case and "-only" or "-or-later"; other names unchanged."""
    bare = re.sub(r"-(?:only|or-later)\Z|\+\Z", "", name.strip(), flags=re.IGNORECASE)
    return _BY_LOWER.get(bare.lower(), bare)


def allowed(names: Iterable[str]) -> frozenset[str]:
    """The identifiers meant by names of GROUPS and of licences."""
    return frozenset(one for name in names for one in GROUPS.get(name, (normal(name),)))


_BY_LOWER = {name.lower(): name for group in GROUPS.values() for name in group}
