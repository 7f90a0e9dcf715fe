"""What secrets look like: forms that the services document, and assignments to names that say what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator

ALONE = r"(?<![A-Za-z0-9])"  # also after _, as in hf_oauth_eyJ…
WORD = r"[A-Za-z0-9_-]"
# A value needs a letter and a digit, and no brackets: os.environ["X"] and <hidden> are no secrets.
VALUE = r"(?=[^\s\"'`]*[A-Za-z])(?=[^\s\"'`]*\d)[^\s\"'`<>(){}\[\]$,;]{8,}"
KEYS = ["access", "account", "api", "auth", "encryption", "private", "(?:secret|shared)[_-]?access", "signing"]
TOKENS = ["access", "api", "auth", "bearer", "git(?:hub|lab)", "hf", "hub", "hugging[_-]?face", "refresh", "wandb"]
NAMES = ["passwords?", "passwd", "passphrase", "secret(?:[_-]?key)?", "credentials?"]
NAMES += [f"{name}[_-]?key" for name in KEYS] + [f"{name}[_-]?token" for name in TOKENS]
SERVICES = {
    "a Hugging Face token": r"(?:hf|api_org)_(?:oauth_|jwt_)?[A-Za-z0-9]{30,}",
    "a GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})",
    "a GitLab token": rf"gl(?:agent|cbt|dt|ft|imt|oas|pat|ptt|rt|soat)-{WORD}{{20,}}",
    "an API key": rf"sk-(?=[A-Za-z_-]*\d){WORD}{{20,}}",  # with a digit, so that words aren't one
    "an AWS access key": r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b",
    "a Google API key": rf"(?:AIza{WORD}{{35}}|GOCSPX-{WORD}{{28}}|ya29\.{WORD}{{20,}})",
    "a Slack token": r"(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}",
    "a webhook's address": r"(?:hooks\.slack\.com/[a-z]+|discord(?:app)?\.com/api/webhooks)/[\w/-]{20,}",
    "a JSON web token": rf"eyJ{WORD}{{10,}}\.{WORD}{{10,}}\.{WORD}{{10,}}",
    "an npm token": r"npm_[A-Za-z0-9]{36}",
    "a PyPI token": rf"pypi-AgE{WORD}{{30,}}",
    "a Stripe key": r"(?:[rs]k_(?:live|test)|whsec)_[A-Za-z0-9]{16,}",
    "a Weights & Biases key": r"wandb_v\d_\w{30,}",
    "a SendGrid key": rf"SG\.{WORD}{{16,}}\.{WORD}{{16,}}",
    "a Twilio key": r"(?:AC|SK)[0-9a-f]{32}\b",
    "a Mailgun or Mailchimp key": r"(?:key-[0-9a-f]{32}\b|[0-9a-f]{32}-us\d{1,2}\b)",
    "a Telegram token": rf"\d{{8,10}}:AA{WORD}{{33}}\b",
    "a Discord token": rf"[MNO]{WORD}{{23,27}}\.{WORD}{{6}}\.{WORD}{{27,}}",
    "a Docker token": rf"dckr_(?:pat|oat)_{WORD}{{20,}}",
    "a DigitalOcean token": r"do[opr]_v1_[0-9a-f]{64}",
    "a Databricks token": r"dapi[0-9a-f]{32}",
    "a Vault token": rf"hv[bs]\.{WORD}{{24,}}",
    "a Shopify token": r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",
    "a Replicate, Groq or xAI key": r"(?:r8_|gsk_|xai-|pplx-)[A-Za-z0-9]{32,}",
    "a Square token": rf"sq0(?:atp|csp)-{WORD}{{22,}}",
    "an Azure signature": r"[?&]sig=[A-Za-z0-9%+/]{20,}",
}
SERVICES_RE = {kind: re.compile(ALONE + form) for kind, form in SERVICES.items()}
PHRASES_RE = {
    "a private key": re.compile(
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File|AGE-SECRET-KEY-1"
    ),
    "a password in an address": re.compile(rf"://(?:[^\s/:@\"'`<>]*:[^\s/@\"'`<>]+|(?={WORD}*\d){WORD}{{16,}})@"),
}
# For texts in small letters: ignoring the case would take ten times as long.
ASSIGNMENTS_RE = {
    "an authorization": re.compile(rf"(?:bearer|authorization: *\w+) +{VALUE}"),
    "a password or key": re.compile(rf"(?:{'|'.join(NAMES)})[\"']?(?:\s*[=:]\s*|\s+)[\"']?{VALUE}"),
}
LONG_WORD = re.compile(r"[^\s\"'`<>,;(){}\[\]]{16,}")


def secrets_in(text: str) -> Iterator[str]:
    """Yields the kinds of secrets in a text."""
    words = "\n".join(LONG_WORD.findall(text))  # rows of tokens have none: a hundred times fewer characters
    for forms, part in ((SERVICES_RE, words), (PHRASES_RE, text), (ASSIGNMENTS_RE, text.lower())):
        yield from (kind for kind, form in forms.items() if form.search(part))
