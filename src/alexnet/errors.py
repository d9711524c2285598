"""What a user did wrong, said in one line.

`UserError` is raised for mistakes that a user can make and mend: a path that is not there, an
unknown name, a damaged file. The command line prints its message and exits with code 2. What
only we can get wrong is an `assert`.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """One clear line: what is wrong, and what to do about it."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for a near miss, else "; known: a, b, c"."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}"
