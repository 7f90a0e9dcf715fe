"""The Xet storage: uploads of hf_xet are parsed and reassembled according to the protocol."""

from __future__ import annotations

import hashlib

import httpx2
import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd as Add
from huggingface_hub import HfApi, constants

from testing.local_hub import ALICE, ALICE_READS, LocalHub
from testing.local_hub.xet_format import chunk_content, xorb_chunks

THING = "alice/thing"
RNG = np.random.default_rng(3)
FLOATS = RNG.normal(0, 0.02, 150_000).astype(np.float32).tobytes()
CONTENT = {
    "floats.bin": FLOATS + b"odd",  # grouped by bytes, a length that isn't a multiple of four
    "text.bin": b"the same words again " * 20_000,
    "noise.bin": RNG.bytes(250_001),
    "again.bin": FLOATS[100_000:500_000] + RNG.bytes(1000),
}


@pytest.fixture
def stored(hub: LocalHub, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """A Hub that got `CONTENT` by Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    api.create_repo(THING)
    api.create_commit(THING, [Add(path, data) for path, data in CONTENT.items()], commit_message="c")
    return hub


def access(hub: LocalHub, scope: str, token=ALICE) -> tuple[str, dict[str, str]]:
    """The storage's address and the header that opens it."""
    url = f"{hub.endpoint}/api/models/{THING}/xet-{scope}-token/main"
    answer = httpx2.get(url, headers={"Authorization": f"Bearer {token.secret}"})
    answer.raise_for_status()
    return answer.json()["casUrl"], {"Authorization": f"Bearer {answer.json()['accessToken']}"}


def xet_session():
    """The client's session with the storage; a private name, since no public function uploads under a wrong SHA-256."""
    from huggingface_hub.utils._xet import get_xet_session

    return get_xet_session()


def test_every_compression_scheme_is_decoded(stored: LocalHub):
    xorbs = [file.read_bytes() for file in (stored.store.folder / "xet" / "xorbs").iterdir()]
    assert {chunk.scheme for xorb in xorbs for chunk in xorb_chunks(xorb)} == {0, 1, 2}
    assert sum(map(len, xorbs)) < sum(map(len, CONTENT.values())) - 400_000  # as many are words that repeat
    assert {path: stored.repo(THING).read(path) for path in CONTENT} == CONTENT


def test_a_range_of_a_file_needs_few_chunks(stored: LocalHub):
    url, headers = access(stored, "read")
    for path, data in CONTENT.items():
        name = stored.repo(THING).commit().files[path].xet
        for first, last in ((0, len(data) - 1), (0, 0), (100_000, 230_000), (len(data) - 10, len(data) + 99)):
            answer = httpx2.get(
                f"{url}/v1/reconstructions/{name}", headers=headers | {"Range": f"bytes={first}-{last}"}
            ).json()
            parts = []
            for term in answer["terms"]:
                fetch = next(one for one in answer["fetch_info"][term["hash"]] if one["range"] == term["range"])
                bounds = fetch["url_range"]
                xorb = httpx2.get(fetch["url"], headers={"Range": f"bytes={bounds['start']}-{bounds['end']}"})
                assert xorb.status_code == 206
                content = b"".join(chunk_content(xorb.content, chunk) for chunk in xorb_chunks(xorb.content))
                assert len(content) == term["unpacked_length"]
                parts.append(content)
            whole, offset = b"".join(parts), answer["offset_into_first_range"]
            assert whole[offset : offset + last - first + 1] == data[first : last + 1]
        beyond = {"Range": f"bytes={len(data)}-{len(data) + 1}"}
        assert httpx2.get(f"{url}/v1/reconstructions/{name}", headers=headers | beyond).status_code == 416


def test_a_file_that_has_another_sha256_than_announced_is_refused(stored: LocalHub):
    wrong = hashlib.sha256(b"something else").hexdigest()
    upload = xet_session().new_upload_commit(
        token_refresh_url=f"{stored.endpoint}/api/models/{THING}/xet-write-token/main",
        token_refresh_headers={"Authorization": f"Bearer {ALICE.secret}"},
    )
    with pytest.raises(Exception, match="400"), upload as commit:
        commit.start_upload_bytes(b"this has another content" * 100, sha256=wrong)
    assert stored.repo(THING).owned(wrong) is None


def test_malformed_uploads_and_wrong_tokens_are_refused(stored: LocalHub):
    url, writes = access(stored, "write")
    _, reads = access(stored, "read", ALICE_READS)
    xorb = next((stored.store.folder / "xet" / "xorbs").iterdir()).read_bytes()
    broken = (b"", b"garbage", xorb[:-1], xorb[:4] + b"\x07" + xorb[5:], xorb[:1] + b"\xff\xff\xff" + xorb[4:])
    for body in broken:
        answer = httpx2.post(f"{url}/v1/xorbs/default/{'0' * 64}", content=body, headers=writes)
        assert (answer.status_code, "Malformed" in answer.text) == (400, True)
        assert httpx2.post(f"{url}/v1/shards", content=body, headers=writes).status_code == 400
    for headers, status in ((reads, 403), ({"Authorization": "Bearer none"}, 401), ({}, 401)):
        assert httpx2.post(f"{url}/v1/xorbs/default/{'0' * 64}", content=xorb, headers=headers).status_code == status
    link = f"{stored.endpoint}/api/models/{THING}/xet-write-token/main"
    for token in (ALICE_READS.secret, "hf_unknown"):
        assert httpx2.get(link, headers={"Authorization": f"Bearer {token}"}).status_code in (401, 403)
