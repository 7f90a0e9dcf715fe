"""Puts the repositories together, checks and sends them; or, with `--dry_run`, only writes what would be sent."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import get_token

from imagelm.hub.arguments import PushArguments
from imagelm.hub.checks import check_staged
from imagelm.hub.client import check_access
from imagelm.hub.stage_data import stage_dataset
from imagelm.hub.stage_model import check_model_folder, stage_model
from imagelm.hub.stage_page import check_page_model, stage_page
from imagelm.hub.stage_space import stage_space
from imagelm.hub.staged import Staged
from imagelm.hub.upload import check_owner, check_tag, look_at, send, validate_cards
from imagelm.utils.atomic_io import write_json
from imagelm.utils.errors import HubError
from imagelm.utils.output_folder import atomic_folder, check_outside, check_replaceable
from imagelm.utils.text import printable

logger = logging.getLogger(__name__)

UPLOADS_FILE = "uploads.json"
STAGERS = {"dataset": stage_dataset, "model": stage_model, "space": stage_space}


def push(options: PushArguments, level: int = logging.INFO) -> None:
    """Publishes a trained folder, and its data and a demo if asked.

    Everything is checked before anything is sent; each repository gets one commit or none.

    Raises:
        InputError: The folders or options are wrong; nothing was sent.
        HubError: The Hub couldn't be reached or refused the push; the message names the remedy.
    """
    check_model_folder(Path(options.model_dir))
    if options.space_sdk == "static":
        check_page_model(options)
    if options.preview is not None:
        _preview(options, options.preview, level)
        return
    api = HfApi(token=options.token)
    user = check_access(api, options)
    logger.log(level, f"logged in as {user}")
    with tempfile.TemporaryDirectory(prefix="imagelm-push-") as home:
        staged = _stage(with_namespaces(options, user), Path(home))
        check_staged(staged, options.token or get_token())
        for one in staged:
            _log_contents(one, level)
        targets = [look_at(api, one.kind, one.repo_id, options) for one in staged]
        for one, target in zip(staged, targets, strict=True):
            check_owner(api, target, options)
            check_tag(one, target, options.tag)
        validate_cards(staged)
        for one, target in zip(staged, targets, strict=True):
            sent = send(api, one, target, options)
            if sent.num_sent or sent.num_deleted:
                counts = f"{sent.num_sent} files sent ({_size(sent.num_bytes)}), {sent.num_same} unchanged"
                deleted = f", {sent.num_deleted} old ones deleted" if sent.num_deleted else ""
                logger.log(level, f"{one.kind}: {counts}{deleted}")
            else:
                logger.log(level, f"{one.kind}: all {sent.num_same} files are there already, nothing was sent")
            logger.log(level, f"  {sent.url}")


def _preview(options: PushArguments, folder: Path, level: int) -> None:
    """Writes what would be uploaded to a folder; needs no network."""
    for flag, source in (("--model_dir", options.model_dir), ("--dataset_dir", options.dataset_dir)):
        if source:
            check_outside(folder, flag, source)
    with atomic_folder(folder, partial(check_replaceable, marker=UPLOADS_FILE, overwrite=True)) as home:
        staged = _stage(options, home)
        check_staged(staged, options.token or get_token())
        listing = {
            one.kind: {"repo_id": one.repo_id, "files": {name: file.stat().st_size for name, file in one.files.items()}}
            for one in staged
        }
        write_json(home / UPLOADS_FILE, listing)
        for one in staged:
            _log_contents(one, level)
            for name, file in one.files.items():
                logger.log(level, f"  {_size(file.stat().st_size):>9}  {name}")
    logger.log(level, f"nothing was uploaded; see {folder}")


def _stage(options: PushArguments, home: Path) -> list[Staged]:
    try:
        stagers = STAGERS | ({"space": stage_page} if options.space_sdk == "static" else {})
        return [stagers[kind](options, home / kind) for kind in options.repositories]
    except OSError as error:
        raise HubError(
            f"the upload can't be put together in {home}: {error.strerror or error}; set TMPDIR to another folder"
        ) from error


def with_namespaces(options: PushArguments, user: str) -> PushArguments:
    """Completes names without a namespace with the user's own."""
    ids = {kind: name if "/" in name else f"{user}/{name}" for kind, name in options.repositories.items()}
    return replace(options, repo_id=ids["model"], dataset_repo_id=ids.get("dataset"), space_repo_id=ids.get("space"))


def _log_contents(staged: Staged, level: int) -> None:
    num_bytes = sum(file.stat().st_size for file in staged.files.values())
    logger.log(level, f"{staged.kind} {staged.repo_id}: {len(staged.files)} files, {_size(num_bytes)}")
    for note in staged.notes:
        logger.log(level, f"  {printable(note)}")


def _size(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
