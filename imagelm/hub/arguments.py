"""What `push_to_hub.py` can be told.

Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from imagelm.utils.errors import InputError

KINDS = ("dataset", "model", "space")  # in the order in which they go out: each may name those before it
REPO_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,94}[A-Za-z0-9_]|[A-Za-z0-9_]")
# What git takes for a branch or tag (git-check-ref-format); other refs, such as refs/pr/1, are the Hub's own.
REF_NAME = re.compile(r"(?!refs/)(?!.*(?:\.\.|//|/\.|@\{|\.lock(?:/|$)))[^-./\s~^:?*\[\\][^\s~^:?*\[\\]*(?<![./])")
PREVIEW_FOLDER = "hub_preview"  # of --dry_run, beside the model's folder


@dataclass(frozen=True)
class RunPush:
    """How `train.py --push_to_hub` publishes its run.

    Args:
        repo_id: `USER/NAME`, or a name in the user's own namespace.
        token: A Hub token; None takes the one that the machine is logged in with.
        private: Make a new repository private.
        revision: Branch to commit to.
        each_save: Push the weights at each save too, not only the finished run.
    """

    repo_id: str
    token: str | None = None
    private: bool = False
    revision: str | None = None
    each_save: bool = False

    def options(self, model_dir: Path, **more: object) -> PushArguments:
        """The same as `push_to_hub.py` would be told."""
        return PushArguments(
            model_dir=str(model_dir),
            repo_id=self.repo_id,
            token=self.token,
            private=self.private,
            revision=self.revision,
            **more,
        )


@dataclass
class PushArguments:
    """Which folders become which repositories, and how.

    Args:
        model_dir: A trained folder, such as `outputs/mine/best_model`.
        repo_id: The model's repository, `USER/NAME`; a name alone is taken for one of the user's own.
        dataset_dir: What `prepare_dataset.py` wrote; needed for a dataset repository.
        dataset_repo_id: Of the data's repository; None publishes no data.
        space_repo_id: Of the demo's; None makes no demo.
        dry_run: Write what would be uploaded to this folder and send nothing; None uploads.
        private: Make new repositories private.
        revision: Branch to commit to; it is made where it isn't there.
        tag: Name for the commits.
        create_pr: Open pull requests instead of committing.
        commit_message: Of all commits.
        token: A Hub token; None takes the one that the machine is logged in with.
        license: The model's licence by its identifier on the Hub, such as "apache-2.0"; None names none.
        num_drawings: Images drawn for the card, where the model has its codec.

    Raises:
        InputError: Options contradict each other or a name can't be one.
    """

    model_dir: str
    repo_id: str
    dataset_dir: str | None = None
    dataset_repo_id: str | None = None
    space_repo_id: str | None = None
    dry_run: str | None = None
    private: bool = False
    revision: str | None = None
    tag: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    token: str | None = None
    license: str | None = None
    num_drawings: int = 28

    def __post_init__(self) -> None:
        for flag, name in self._named().items():
            parts = name.split("/")
            if len(parts) > 2 or not all(REPO_NAME.fullmatch(part) for part in parts) or name.endswith(".git"):
                raise InputError(
                    f"{flag} {name!r} is no repository; give USER/NAME, of letters, digits, '-', '_' and '.', "
                    "96 characters at most"
                )
        if self.dataset_repo_id and not self.dataset_dir:
            raise InputError("--dataset_repo_id needs --dataset_dir, the folder that prepare_dataset.py wrote")
        if self.create_pr and self.tag:
            raise InputError("--tag names a commit that stays; a pull request's doesn't yet: leave out one of the two")
        for flag, ref in (("--revision", self.revision), ("--tag", self.tag)):
            if ref is not None and not REF_NAME.fullmatch(ref):
                raise InputError(f"{flag} {ref!r} can't be a name in git; give one such as main or v1.0")
        if self.num_drawings < 0:
            raise InputError(f"--num_drawings {self.num_drawings}: give 0 or more")
        if self.commit_message is not None and not self.commit_message.strip():
            raise InputError("--commit_message is empty; leave it out or say what changed")
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise InputError(
                f"--license {self.license!r} is no identifier; give one such as apache-2.0, mit or cc-by-4.0"
            )

    @property
    def repositories(self) -> dict[str, str]:
        """Kind to id of every repository that was asked for, in the order in which they go out."""
        ids = dict(zip(KINDS, (self.dataset_repo_id, self.repo_id, self.space_repo_id), strict=True))
        return {kind: name for kind, name in ids.items() if name}

    @property
    def preview(self) -> Path | None:
        """The folder of a dry run, or None; the name alone stands for one beside the model's folder."""
        if self.dry_run is None:
            return None
        return Path(self.dry_run) if self.dry_run else Path(self.model_dir).resolve().parent / PREVIEW_FOLDER

    def _named(self) -> dict[str, str]:
        flags = {"dataset": "--dataset_repo_id", "model": "--repo_id", "space": "--space_repo_id"}
        return {flags[kind]: name for kind, name in self.repositories.items()}
