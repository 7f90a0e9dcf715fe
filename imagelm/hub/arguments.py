"""The options of `imagelm push`.

Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from imagelm.utils.command_line import OptionGroup, option
from imagelm.utils.errors import InputError

SPACE_SDKS = ("gradio", "static")
KINDS = ("dataset", "model", "space")  # in the order of the uploads: each may link to those before it
REPO_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,94}[A-Za-z0-9_]|[A-Za-z0-9_]")
# Valid branch and tag names (git-check-ref-format); other refs, such as refs/pr/1, belong to the Hub.
REF_NAME = re.compile(r"(?!refs/)(?!.*(?:\.\.|//|/\.|@\{|\.lock(?:/|$)))[^-./\s~^:?*\[\\][^\s~^:?*\[\\]*(?<![./])")
PREVIEW_FOLDER = "hub_preview"  # of --dry_run, beside the model's folder


@dataclass(kw_only=True)
class PushArguments(OptionGroup):
    """Which folders become which repositories, and how.

    Raises:
        InputError: Options contradict each other, or a name isn't valid.
    """

    model_dir: str = option(
        "trained folder, such as outputs/mine/best_model", group="What to publish", metavar="FOLDER"
    )
    repo_id: str = option("repository of the model: USER/NAME, or NAME for your own account", metavar="REPOSITORY")
    dataset_dir: str | None = option(
        "data that imagelm prepare wrote; published if --dataset_repo_id is given", None, metavar="FOLDER"
    )
    dataset_repo_id: str | None = option(
        "also publish the data to this repository, as Parquet; the model card links to it", None, metavar="REPOSITORY"
    )
    space_repo_id: str | None = option("also create a demo Space in this repository", None, metavar="REPOSITORY")
    space_sdk: str = option(
        "gradio: the demo computes on the Space's CPU; static: in the visitor's browser, from the model's ONNX export",
        SPACE_SDKS[0],
        choices=SPACE_SDKS,
    )
    license: str | None = option("license of model and data, such as apache-2.0, mit or cc-by-4.0", None, metavar="ID")
    num_drawings: int = option("sample images for the card, if the model has its codec; 0: none", 28, minimum=0)

    dry_run: str | None = option(
        f"upload nothing; write exactly what would be uploaded to FOLDER ({PREVIEW_FOLDER} beside --model_dir if not "
        "given)",
        None,
        group="How to publish it",
        metavar="FOLDER",
        bare="",
    )
    private: bool = option("make new repositories private", False)
    revision: str | None = option(
        "branch to commit to; it is created if it doesn't exist; the main branch if not given", None, metavar="BRANCH"
    )
    tag: str | None = option("tag for the commits, such as v1.0", None, metavar="NAME")
    create_pr: bool = option("open pull requests instead of committing", False)
    replace_foreign_files: bool = option(
        "replace files also in a repository that no earlier push made, whose card lacks the tag imagelm", False
    )
    commit_message: str | None = option("message of all commits", None)
    token: str | None = option(
        "Hub token; better: set HF_TOKEN, which no list of processes shows", None, metavar="TOKEN"
    )

    def __post_init__(self) -> None:
        for kind, name in self.repositories.items():
            flag, parts = "--repo_id" if kind == "model" else f"--{kind}_repo_id", name.split("/")
            if len(parts) > 2 or not all(REPO_NAME.fullmatch(part) for part in parts) or name.endswith(".git"):
                raise InputError(
                    f"{flag} {name!r} isn't a repository name; give USER/NAME, of letters, digits, '-', '_' and '.', "
                    "96 characters at most"
                )
        if self.dataset_repo_id and not self.dataset_dir:
            raise InputError("--dataset_repo_id needs --dataset_dir, the folder that imagelm prepare wrote")
        if self.space_sdk == "static" and not self.space_repo_id:
            raise InputError("--space_sdk static needs --space_repo_id, the repository of the demo")
        if self.space_sdk == "static" and self.private:
            raise InputError(
                "--space_sdk static: a page in the browser can't read a private model; remove --private, or choose "
                "--space_sdk gradio"
            )
        if self.create_pr and self.tag:
            raise InputError("--tag names a permanent commit, and --create_pr makes none yet; remove one of the two")
        for flag, ref in (("--revision", self.revision), ("--tag", self.tag)):
            if ref is not None and not REF_NAME.fullmatch(ref):
                raise InputError(f"{flag} {ref!r} isn't a valid name in git; give one such as main or v1.0")
        super().__post_init__()
        if self.commit_message is not None and not self.commit_message.strip():
            raise InputError("--commit_message is empty; remove it or describe the change")
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise InputError(
                f"--license {self.license!r} isn't a license identifier; give one such as apache-2.0, mit or cc-by-4.0"
            )

    @property
    def repositories(self) -> dict[str, str]:
        """Kind to id of each repository to publish, in the order of the uploads."""
        ids = dict(zip(KINDS, (self.dataset_repo_id, self.repo_id, self.space_repo_id), strict=True))
        return {kind: name for kind, name in ids.items() if name}

    @property
    def preview(self) -> Path | None:
        """The folder of a dry run, or None; an empty name stands for a folder beside the model's."""
        if self.dry_run is None:
            return None
        return Path(self.dry_run) if self.dry_run else Path(self.model_dir).resolve().parent / PREVIEW_FOLDER


@dataclass(kw_only=True)
class VerifyArguments(OptionGroup):
    """Which published model is checked on which published rows.

    Raises:
        InputError: A value is empty or out of its range.
    """

    model: str = option(
        "trained or published folder, or Hub id; may be given as the first word, without --model",
        group="What to verify",
        metavar="FOLDER|ID",
    )
    dataset: str = option(
        "rows that the figures were measured on: what imagelm prepare wrote, Parquet, Arrow or JSONL, or a Hub id",
        metavar="PATH|ID",
    )
    split: str | None = option("split that the figures were measured on; test if not given", None, metavar="NAME")
    reported: list[str] | None = option(
        "figures to check beside those of the card, such as perplexity=1.01 cls_accuracy=0.94; may be repeated",
        None,
        metavar="FIGURE=VALUE",
        adds=True,
    )
    revision: str | None = option("branch, tag or commit of the model's Hub id", None, metavar="NAME")
    dataset_revision: str | None = option("branch, tag or commit of the dataset's Hub id", None, metavar="NAME")
    device: str = option("auto, cpu, cuda or cuda:N", "auto", group="How", metavar="DEVICE")
    batch_size: int = option("rows computed at once; changes no figure", 64, minimum=1)
    output: str | None = option("also write the result to this JSON file", None, metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("model", "dataset"):
            if not getattr(self, name):
                raise InputError(f"--{name} is empty; name a folder or a Hub id")
