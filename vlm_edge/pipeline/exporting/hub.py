"""Checkpoints of the Hugging Face hub -> folders in its local cache, with the files that are needed and no others."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from vlm_edge.core import discover
from vlm_edge.core.bundle_writer import CONFIGURATION
from vlm_edge.core.checkpoint import FOREIGN, INDEX, SINGLE, read_config, shard_names
from vlm_edge.errors import BadInput, MissingDependency

SMALL_FILES = (
    *CONFIGURATION.values(), "processor_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", INDEX,
)  # fmt: skip
"""Loaded first, so that a model that cannot be used is refused before its weights come. By name: no pickle is among them."""
_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_AGAIN = "run it again: what has arrived is kept"
Step = Callable[[str], None]
Accept = Callable[[Mapping[str, Any]], object]


class Fetched(NamedTuple):
    """A folder with a checkpoint, the model's id on the hub, and the commit that it is of."""

    root: Path
    model: str
    revision: str


def is_id(name: str) -> bool:
    """Whether a name that is no folder here could be a model of the hub: `organisation/name`, and no `./` in front."""
    return bool(_ID.fullmatch(name)) and not name.startswith((".", "-")) and not Path(name).exists()


def fetch(
    model: str,
    *,
    revision: str = "",
    offline: bool = False,
    on_step: Step | None = None,
    bars: bool = True,
    accept: Accept = discover.family_of,
) -> Fetched:
    """Load a model's configuration, and then its safetensors, into huggingface_hub's cache; both of one commit.

    revision: branch, tag or commit; empty for the newest.  offline: only what the cache has; HF_HUB_OFFLINE means the same.
    bars: progress bars on stderr, where that is a terminal.  accept: raises BadInput for a config.json of no use here, before
    the weights come; by default for what is of no family.
    Raises BadInput for a model, revision or network that is not there, and for models that cannot be used; MissingDependency.
    """
    try:
        import huggingface_hub as hub
    except ImportError as cause:
        raise MissingDependency(
            f"{model} is to be fetched from the hub, and huggingface_hub is not installed",
            remedy="pip install 'vlm-edge[build]'",
        ) from cause
    step = on_step or (lambda _: None)
    step(f"look up {model}")
    with _quiet(hub, bars=bars), _failures(model, revision, offline=offline):
        root = _load(hub, model, SMALL_FILES, revision or None, offline)
    commit = root.name
    accept(read_config(root))
    weights = shard_names(root) if (root / INDEX).is_file() else [SINGLE]
    if foreign := [name for name in weights if not name.endswith(".safetensors")]:
        _refuse(model, foreign)
    step(f"download {model}")
    with _quiet(hub, bars=bars), _failures(model, revision, offline=offline):
        _load(hub, model, weights, commit, offline)
        if weights == [SINGLE] and not (root / SINGLE).is_file():
            _refuse(model, [] if offline else hub.HfApi().list_repo_files(model, revision=commit))
    return Fetched(root, model, commit)


def _load(hub: Any, model: str, names: Sequence[str], revision: str | None, offline: bool) -> Path:
    return Path(
        hub.snapshot_download(
            model, revision=revision, allow_patterns=[_literally(name) for name in names], local_files_only=offline
        )
    )


def _literally(name: str) -> str:
    """A pattern that fits this name alone: an index comes from the hub, and may name a file `*`."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _refuse(model: str, files: Sequence[str]) -> None:
    for kind in FOREIGN:
        if found := [name for name in files if fnmatch(name, kind.pattern)]:
            raise BadInput(f"model {model} has {kind.what} ({found[0]})", remedy=kind.remedy)
    raise BadInput(f"model {model} has no {SINGLE}", remedy="name a model with safetensors")


@contextmanager
def _quiet(hub: Any, *, bars: bool) -> Iterator[None]:
    """No log lines; no bars either, unless they are wanted and somebody can see them."""
    level = hub.logging.get_verbosity()
    hub.logging.set_verbosity_error()
    silence = (
        not (bars and sys.stderr is not None and sys.stderr.isatty()) and not hub.utils.are_progress_bars_disabled()
    )
    if silence:
        hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.logging.set_verbosity(level)
        if silence:
            hub.utils.enable_progress_bars()


@contextmanager
def _failures(model: str, revision: str, *, offline: bool) -> Iterator[None]:
    """huggingface_hub's errors, which are long, as ours."""
    from huggingface_hub import constants, errors

    page = f"https://huggingface.co/{model}"
    try:
        yield
    except BadInput:
        raise
    except errors.GatedRepoError as cause:
        why = f"{model} is only for those who accepted its terms"
        raise BadInput(why, remedy=f"accept them at {page}, then: hf auth login") from cause
    except errors.RepositoryNotFoundError as cause:
        why = f"there is neither a folder {model} nor a model of that name on the hub"
        raise BadInput(why, remedy="check the name; for a private model: hf auth login") from cause
    except errors.RevisionNotFoundError as cause:
        why = f"{model} has no revision {revision or 'main'}"
        raise BadInput(why, remedy=f"choose one of {page}/commits") from cause
    except errors.HFValidationError as cause:
        raise BadInput(f"{model} is no model's name: {_first(cause)}", remedy="name it organisation/name") from cause
    except errors.LocalEntryNotFoundError as cause:
        if offline or constants.HF_HUB_OFFLINE:
            named = f"{model} at {revision}" if revision else model
            why = f"{named} is not in the local cache as a whole, and the network is not to be used"
            raise BadInput(why, remedy="leave out --offline and unset HF_HUB_OFFLINE, or name a folder") from cause
        why = f"{model} is no folder here, and the hub cannot be reached"
        raise BadInput(why, remedy="check the network, or copy the model here and name its folder") from cause
    except (
        Exception
    ) as cause:  # the HTTP client below, and so the base of its errors, changes with versions of the library
        raise BadInput(f"{model} cannot be downloaded: {_first(cause)}", remedy=_AGAIN) from cause


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
