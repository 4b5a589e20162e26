"""One odd change must not cost its neighbours: what fails is rejected by name, and the next is tried.

On the path: around everything that is done for one change.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from swerl_jax.curate.change import Reject
from swerl_jax.curate.git_process import GitTimeout
from swerl_jax.curate.repository import Repository, RepositoryError

STAGE = "source"
REASONS = {
    "failed": "the program failed on it",
    "git_timeout": "git gave no answer in time",
}
MAX_TIMEOUTS = 5  # of one open clone; then it counts as unreadable


def attempt(id_: str, repository: Repository | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what `function(*arguments)` does, or a Reject of `id_` where it fails.

    Args:
      id_: of the change.
      repository: the clone that is read, None for none.

    Raises:
      RepositoryError: the clone cannot be read any further, or git gave no answer for the MAX_TIMEOUTS-th time.
    """
    try:
        return function(*arguments)
    except GitTimeout as error:
        repository.timeouts += 1
        if repository.timeouts >= MAX_TIMEOUTS:
            raise
        return Reject(id_, STAGE, "git_timeout", str(error))
    except RepositoryError:
        raise
    except Exception:  # whatever it is: the others are worth more
        if repository:
            repository.restart()
        return Reject(id_, STAGE, "failed", traceback.format_exc(limit=-4))
