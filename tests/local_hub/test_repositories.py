"""Repositories: versions, pull requests, rights, names, cards, as the unmodified client asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from testing.local_hub import ALICE_ALONE, ALICE_READS, BOB, LocalHub
from testing.local_hub.pushing import CONTENT, SMALL, THING, WEIGHTS, download, push


def status(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


def test_versions_are_found_by_branch_tag_and_commit(hub: LocalHub, api: HfApi, thing: str, tmp_path: Path):
    api.create_tag(THING, tag="v1.0", tag_message="first")
    api.create_branch(THING, branch="try/this", revision=thing)
    second = push(api, {"README.md": b"second"}, revision="try/this").oid
    third = push(api, {"README.md": b"third"}).oid
    expected = {"v1.0": SMALL["README.md"], thing: SMALL["README.md"], "try/this": b"second", second[:8]: b"second"}
    for revision, data in (expected | {"main": b"third", third: b"third"}).items():
        assert download(api, "README.md", tmp_path, revision=revision) == data
    refs = api.list_repo_refs(THING)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": third, "try/this": second}
    assert [(tag.ref, tag.target_commit) for tag in refs.tags] == [("refs/tags/v1.0", thing)]
    titles = [commit.title for commit in api.list_repo_commits(THING)]
    assert titles == ["Push", "Push", "initial commit"]
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(THING, tag="v1.0")
    assert status(error) == 409
    api.create_tag(THING, tag="v1.0", exist_ok=True)
    api.delete_tag(THING, tag="v1.0")
    api.delete_branch(THING, branch="try/this")
    for revision in ("v1.0", "try/this", "f" * 40):
        with pytest.raises(RevisionNotFoundError):
            api.repo_info(THING, revision=revision)
    with pytest.raises(EntryNotFoundError):
        download(api, "none.txt", tmp_path)
    api.super_squash_history(THING, commit_message="One")
    assert [commit.title for commit in api.list_repo_commits(THING)] == ["One"]


def test_a_pull_request_leaves_main_unchanged_until_it_is_merged(hub: LocalHub, either_api: HfApi, tmp_path: Path):
    api, bob = either_api, HfApi(endpoint=hub.endpoint, token=BOB.secret)
    api.create_repo(THING)
    push(api, SMALL)
    opened = push(bob, {"model.safetensors": WEIGHTS, "README.md": b"better"}, create_pr=True)
    assert opened.pr_revision == "refs/pr/1"
    assert "model.safetensors" not in api.list_repo_files(THING)
    assert download(api, "model.safetensors", tmp_path, revision="refs/pr/1") == WEIGHTS
    push(bob, {"more.txt": b"more"}, revision="refs/pr/1")
    hub.commit(THING, {"meanwhile.txt": b"x"})
    assert [ref.name for ref in api.list_repo_refs(THING, include_pull_requests=True).pull_requests] == ["1"]
    api.comment_discussion(THING, 1, "Thanks")
    details = api.get_discussion_details(THING, 1)
    assert (details.author, details.status, details.target_branch) == ("bob", "open", "refs/heads/main")
    assert [event.type for event in details.events] == ["comment", "commit", "commit", "comment"]
    with pytest.raises(HfHubHTTPError) as error:
        bob.merge_pull_request(THING, 1)
    assert status(error) == 403
    api.merge_pull_request(THING, 1)
    assert api.get_discussion_details(THING, 1).status == "merged"
    files = hub.repo(THING).files()
    assert files.keys() >= {"meanwhile.txt", "more.txt"} and files["README.md"] == b"better"
    draft = api.create_pull_request(THING, title="Draft")
    assert (draft.num, draft.status, draft.git_reference) == (2, "draft", "refs/pr/2")
    assert api.change_discussion_status(THING, 2, "closed").new_status == "closed"
    assert [one.num for one in api.get_repo_discussions(THING)] == [2, 1]


def test_a_commit_on_a_stale_parent_is_refused(hub: LocalHub, api: HfApi, thing: str):
    newer = hub.commit(THING, {"bob.txt": b"first"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        push(api, {"a.txt": b"late"}, parent_commit=thing)
    assert status(error) == 412 and hub.repo(THING).sha() == newer
    push(api, {"a.txt": b"in time"}, parent_commit=newer)


def test_long_lists_come_in_pages(hub: LocalHub, api: HfApi, thing: str):
    for number in range(60):
        hub.commit(THING, {"n.txt": b"%d" % number})
    hub.commit(THING, {f"many/{number:04}.txt": b"x" for number in range(1100)})
    assert len(list(api.list_repo_tree(THING, "many"))) == 1100
    assert len(api.list_repo_commits(THING)) == 63
    assert len(hub.asked("/tree/")) == 2 and len(hub.asked("/commits/")) == 2


def test_every_token_has_exactly_its_rights(hub: LocalHub, api: HfApi, thing: str):
    def client(token) -> HfApi:
        return HfApi(endpoint=hub.endpoint, token=token if isinstance(token, str | bool) else token.secret)

    assert [org["name"] for org in api.whoami()["orgs"]] == ["acme"]
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    assert client(ALICE_READS).whoami()["auth"]["accessToken"]["role"] == "read"
    for token, expected in ((ALICE_READS, 403), (BOB, 403), (False, 401), ("hf_unknown", 401)):
        with pytest.raises(HfHubHTTPError) as error:
            push(client(token), {"a.txt": b"no"})
        assert status(error) == expected
        with pytest.raises(HfHubHTTPError) as error:
            client(token).create_repo("alice/other")
        assert status(error) == expected
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client("hf_unknown").whoami()
    api.create_repo("acme/ours")
    push(client(ALICE_ALONE), {"a.txt": b"yes"})
    with pytest.raises(HfHubHTTPError) as error:
        push(client(ALICE_ALONE), {"a.txt": b"no"}, "acme/ours")
    assert status(error) == 403
    api.auth_check(THING, write=True)
    with pytest.raises(HfHubHTTPError):
        client(BOB).auth_check(THING, write=True)


def test_a_private_repository_is_hidden_from_others(hub: LocalHub, api: HfApi, tmp_path: Path):
    api.create_repo(THING, private=True)
    push(api, CONTENT)
    assert download(api, "model.safetensors", tmp_path / "alice") == WEIGHTS
    assert api.repo_info(THING).private
    others = [HfApi(endpoint=hub.endpoint, token=token) for token in (BOB.secret, False)]
    for other in others:
        for call in (other.repo_info, other.list_repo_files, other.list_repo_refs):
            with pytest.raises(RepositoryNotFoundError):
                call(THING)
        with pytest.raises(RepositoryNotFoundError):
            download(other, "README.md", tmp_path / "others")
        assert not list(other.list_models(author="alice"))
    api.update_repo_settings(THING, private=False, gated="manual")
    for other in others:
        assert other.repo_info(THING).gated == "manual"
        with pytest.raises(GatedRepoError):
            download(other, "README.md", tmp_path / "others")
    api.update_repo_settings(THING, gated=False)
    assert download(others[1], "README.md", tmp_path / "others") == SMALL["README.md"]
    assert [model.id for model in others[1].list_models(author="alice")] == [THING]


def test_repositories_are_created_once_moved_and_deleted(hub: LocalHub, api: HfApi, thing: str, tmp_path: Path):
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(THING)
    assert status(error) == 409
    assert api.create_repo(THING, exist_ok=True).repo_id == THING
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("nobody/thing")
    assert status(error) == 403
    api.move_repo(THING, "acme/thing")
    assert api.repo_info("acme/thing").sha == api.repo_info(THING).sha == thing
    assert download(api, "model.safetensors", tmp_path) == WEIGHTS
    api.delete_repo("acme/thing")
    for repo_id in ("acme/thing", THING):
        with pytest.raises(RepositoryNotFoundError):
            api.repo_info(repo_id)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("acme/thing")
    api.delete_repo("acme/thing", missing_ok=True)


def test_the_card_is_checked_and_read(hub: LocalHub, api: HfApi, thing: str):
    results = [
        {"task": {"type": "t"}, "dataset": {"type": "d", "name": "D"}, "metrics": [{"type": "acc", "value": 0.5}]}
    ]
    card = "---\nlicense: mit\ntags: [one]\npipeline_tag: text-generation\nmodel-index: %s\n---\n"
    index = [{"name": "m", "results": results}]
    evaluated = b"- dataset: {id: cais/hle, task_id: default}\n  value: 20.9\n"
    push(api, {"README.md": (card % index).encode(), ".eval_results/hle.yaml": evaluated})
    info = api.model_info(THING)
    assert (info.card_data.license, info.tags, info.pipeline_tag) == ("mit", ["one", "license:mit"], "text-generation")
    assert info.card_data.eval_results[0].metric_value == 0.5
    assert info.eval_results[0].value == 20.9
    for bad in ("---\n: [\n---\n", "---\ntags: [1]\n---\n", card % [{"name": "m", "results": [{}]}]):
        with pytest.raises(ValueError, match="Invalid metadata"):
            push(api, {"README.md": bad.encode()})
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(api, {"README.md": b"# no metadata\n"})


def test_a_space_keeps_its_settings(api: HfApi):
    api.create_repo(THING, repo_type="space", space_sdk="gradio")
    assert api.get_space_runtime(THING).stage == "NO_APP_FILE"
    push(api, {"app.py": b"print()\n"}, repo_type="space")
    assert api.get_space_runtime(THING).stage == "BUILDING"
    api.add_space_variable(THING, "A", "1")
    api.add_space_secret(THING, "S", "hidden")
    assert api.get_space_variables(THING)["A"].value == "1"
    assert set(api.get_space_secrets(THING)) == {"S"}
    api.delete_space_secret(THING, "S")
    assert not api.get_space_secrets(THING)
    assert api.pause_space(THING).stage == "PAUSED"
