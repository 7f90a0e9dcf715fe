"""Users and their rights: tokens, namespaces, private repositories."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from testing.local_hub.store import HubError, Repo

INVALID_TOKEN = "Invalid credentials in Authorization header"


@dataclass(frozen=True)
class Token:
    """`role` is "write", "read" or "fineGrained"; the last may write to `scope` only."""

    user: str
    role: str
    scope: str | None = None

    @property
    def secret(self) -> str:
        """The text that the client sends, in the form of a real token."""
        digest = hashlib.sha256(f"{self.user} {self.role} {self.scope}".encode()).digest()
        return "hf_" + "".join(chr(ord("a") + byte % 26) for byte in digest + digest[:2])


ALICE = Token("alice", "write")
ALICE_READS = Token("alice", "read")
ALICE_ALONE = Token("alice", "fineGrained", "alice")
BOB = Token("bob", "write")
TOKENS = {token.secret: token for token in (ALICE, ALICE_READS, ALICE_ALONE, BOB)}
ORGANISATIONS = {"acme": ("alice",)}


def token_of(authorization: str | None) -> Token | None:
    """None for a stranger; a token that isn't known is an error, as on the Hub."""
    if authorization is None:
        return None
    token = TOKENS.get(authorization.removeprefix("Bearer "))
    if token is None:
        raise HubError(401, INVALID_TOKEN)
    return token


def namespaces(user: str) -> list[str]:
    return [user, *(name for name, members in ORGANISATIONS.items() if user in members)]


def whoami(token: Token | None) -> dict:
    if token is None:
        raise HubError(401, "Invalid username or password.")
    access: dict = {"displayName": f"{token.role} token", "role": token.role, "createdAt": "2026-01-01T00:00:00.000Z"}
    if token.role == "fineGrained":
        scope = {"entity": {"_id": token.scope, "type": "user", "name": token.scope}, "permissions": ["repo.write"]}
        access["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": [scope]}
    organisations = [
        {"type": "org", "id": name, "name": name, "fullname": name.title(), "isEnterprise": False, "roleInOrg": "write"}
        for name in namespaces(token.user)[1:]
    ]
    return {
        "type": "user",
        "id": token.user,
        "name": token.user,
        "fullname": token.user.title(),
        "email": f"{token.user}@localhost",
        "emailVerified": True,
        "isPro": False,
        "orgs": organisations,
        "auth": {"type": "access_token", "accessToken": access},
    }


def may_read(repo: Repo, token: Token | None) -> bool:
    namespace = repo.id.split("/")[0]
    return not repo.meta["private"] or (token is not None and namespace in namespaces(token.user))


def check_gate(repo: Repo, token: Token | None) -> None:
    """A gated repository shows its metadata to everyone, and its contents to its owners."""
    if repo.meta["gated"] and (token is None or repo.id.split("/")[0] not in namespaces(token.user)):
        message = f"Access to {repo.kind} {repo.id} is restricted and you are not in the authorized list."
        raise HubError(401 if token is None else 403, message, "GatedRepo")


def not_found(token: Token | None) -> HubError:
    """A repository that doesn't exist and a private one of others look the same."""
    return HubError(401 if token is None else 404, "Repository not found", "RepoNotFound")


def check_write(namespace: str, token: Token | None) -> Token:
    if token is None:
        raise HubError(401, "Invalid username or password.")
    if token.role == "read":
        raise HubError(403, "Forbidden: your token has read access only, this needs a token with write access")
    if namespace not in namespaces(token.user) or token.scope not in (None, namespace):
        raise HubError(403, f"You don't have the rights to write in the namespace {namespace!r}")
    return token


def check_signed_in(token: Token | None) -> Token:
    """Enough to propose a change to any repository one can read, or to discuss it."""
    if token is None:
        raise HubError(401, "Invalid username or password.")
    if token.role == "read":
        raise HubError(403, "Forbidden: your token has read access only, this needs a token with write access")
    return token
