"""Bases from the Hugging Face hub: safetensors only, at one commit, files of an earlier try kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pando.errors import BaseModelError
from pando.files import content_hash
from pando.model.base import SMALL_FILES, base_files
from pando.model.checkpoint import INDEX, SINGLE
from pando.model.manifest import NAME, make_manifest
from pando.settings import load_settings

if TYPE_CHECKING:
    from huggingface_hub.hf_api import HfApi, ModelInfo

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)[\w.-]*", re.IGNORECASE)


def resolve(repo: str, revision: str | None) -> str:
    """The commit that a branch or tag of a repository (the default branch by default) means now.

    Raises:
        BaseModelError: no such repository or revision, or the hub cannot be reached.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    commit = _info(repo, revision).sha
    if commit is None:
        raise BaseModelError(f"the hub names no commit for {repo}")
    return commit


def fetch(repo: str, commit: str, new: Path, name: str) -> None:
    """Brings the base of a repository into the empty folder `new`.

    Files arrive in a folder of the cache, are checked against the hub's hashes and then moved. A later try keeps the
    whole ones; the one that was cut off is fetched anew (the library resumes it only within one process).

    Raises:
        BaseModelError: it has no safetensors, cannot be reached, or a file is not what the hub says.
    """
    info = _info(repo, commit)
    hashes = {s.rfilename: s.lfs.sha256 if s.lfs is not None else None for s in info.siblings or ()}
    wanted = _wanted(repo, set(hashes))
    partial = load_settings().home / "cache" / "hub" / f"{repo.replace('/', '--')}-{commit[:12]}"
    for torn in partial.rglob("*.incomplete"):
        torn.unlink()
    with _saying_why(repo):
        _api().snapshot_download(repo, revision=commit, local_dir=partial, allow_patterns=wanted)
    for file in wanted:
        if hashes[file] is not None and content_hash(partial / file) != f"sha256:{hashes[file]}":
            (partial / file).unlink()
            raise BaseModelError(f"{file} of {repo} is not what the hub says it is; pull again to fetch it anew")
        (new / file).parent.mkdir(exist_ok=True)
        (partial / file).rename(new / file)
    licence = info.card_data.get("license") if info.card_data is not None else None
    make_manifest(new, base_files(new), name, f"https://huggingface.co/{repo}", commit, licence).write(new / NAME)
    shutil.rmtree(partial, ignore_errors=True)


def _wanted(repo: str, there: set[str]) -> list[str]:
    """The files that make up the base, and its licence."""
    weights = {name for name in there if _SHARD.fullmatch(name)} if INDEX in there else {SINGLE} & there
    if not weights:
        raise BaseModelError(f"{repo} has no safetensors weights; pickled ones (.bin) are never opened")
    return sorted(({*SMALL_FILES} & there) | weights | {name for name in there if _LICENCE.fullmatch(name)})


def _info(repo: str, revision: str | None) -> ModelInfo:
    with _saying_why(repo, revision):
        return _api().model_info(repo, revision=revision, files_metadata=True)
    raise AssertionError("unreachable")


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


@contextmanager
def _saying_why(repo: str, revision: str | None = None) -> Iterator[None]:
    """The hub's errors in one line. Telemetry is off before its library is first imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import errors

    endpoint = os.environ.get("HF_ENDPOINT") or "the hub"
    try:
        yield
    except errors.GatedRepoError:
        raise BaseModelError(
            f"{repo} asks for its terms to be accepted: do so on the hub, then `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise BaseModelError(f"{repo} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise BaseModelError(f"{endpoint} has no model {repo!r} (or it is private)") from None
    except errors.HFValidationError as error:
        raise BaseModelError(f"{repo!r} is no hub id: {error}") from None
    except Exception as error:  # connections fail in the many ways of the libraries below
        raise BaseModelError(f"cannot fetch {repo} from {endpoint}: {error}; run it again to go on") from error
