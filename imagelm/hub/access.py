"""Who am I, and may I write there: asked before any file is touched."""

from __future__ import annotations

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from imagelm.hub.arguments import PushArguments
from imagelm.hub.client import hub_errors
from imagelm.utils.errors import InputError


def check_access(api: HfApi, options: PushArguments) -> str:
    """Asks the Hub who this is and whether it may write, before any file is touched.

    Returns:
        The user's name.

    Raises:
        InputError: There is no token, or it may not do this.
        HubError: The Hub can't be reached.
    """
    with hub_errors(f"{api.endpoint}"):
        try:
            who = api.whoami()
        except LocalTokenNotFoundError as error:
            raise InputError(
                "no Hub token: log in with `hf auth login`, set HF_TOKEN, or give --token; one that may write is "
                "made at https://huggingface.co/settings/tokens"
            ) from error
    token = who.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise InputError(f"the token {token.get('displayName', '')!r} may only read; log in with one that may write")
    mine = {who["name"], *(org["name"] for org in who.get("orgs", []))}
    for kind, name in options.repositories.items():
        namespace = name.split("/")[0] if "/" in name else who["name"]
        if options.create_pr:  # anyone may propose a change
            continue
        if namespace not in mine:
            raise InputError(
                f"{kind} {name}: {who['name']} has no namespace {namespace!r}, only {', '.join(sorted(mine))}; "
                "check the spelling, or ask to join the organization"
            )
        if not _may_write(token, namespace, name):
            raise InputError(
                f"{kind} {name}: the fine-grained token {token.get('displayName', '')!r} has no right to write there; "
                "give it one at https://huggingface.co/settings/tokens, or log in with another"
            )
    return who["name"]


def _may_write(token: dict, namespace: str, repo_id: str) -> bool:
    """Whether a fine-grained token names the namespace or the repository among those it may write to."""
    if token.get("role") != "fineGrained" or "scoped" not in token.get("fineGrained", {}):
        return True
    return any(
        scope.get("entity", {}).get("name") in (namespace, repo_id) and "repo.write" in scope.get("permissions", ())
        for scope in token["fineGrained"]["scoped"]
    )
