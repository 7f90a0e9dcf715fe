"""A Hub on loopback for tests, which the unmodified `huggingface_hub` client, hf_xet included, takes for the real one.

    from testing.local_hub import ALICE, ALICE_READS, BOB, LocalHub

    def test_push(hub, tmp_path):                       # the fixture `hub` is LocalHub(tmp_path / "hub"), started
        environment = hub.environment(tmp_path / "home")       # HF_ENDPOINT, HF_TOKEN of alice, a cold HF_HOME
        subprocess.run([sys.executable, "push_to_hub.py", ...], env=environment)  # xet=False: by git LFS instead
        hub.client("from transformers import ...", home=tmp_path / "cold")        # a snippet in such a process
        api = HfApi(endpoint=hub.endpoint, token=ALICE.secret)                    # or a client of this process

        repo = hub.repo("alice/thing", "model")         # past all rights, straight from disk
        repo.files("main"), repo.read("README.md"), repo.history(), repo.refs, repo.meta["private"]
        hub.exists("alice/thing", "dataset")

        hub.faults.cut_upload(after=100_000)            # the network is down from byte 100,000 of request bodies on
        hub.faults.cut_upload(after=100_000, for_ever=False)                  # one connection is cut
        hub.faults.answer(429, "/commit/", at=1, times=1, headers={"Retry-After": "1"})  # times=None: for ever
        hub.faults.answer(503, "^/xet/"); hub.faults.answer(401); hub.faults.answer(403, "/create", "POST")
        hub.faults.lose_answer("/commit/")              # the commit is done, its answer never arrives
        hub.faults.cut_answer(5_000, "/objects/")       # a download (not by Xet) breaks after 5,000 bytes
        hub.faults.before(lambda: hub.commit("alice/thing", {"a.txt": b"x"}), "/commit/")  # someone else was first
        hub.faults.delay(2, "/resolve/")
        hub.store.free_bytes = 10_000                   # disk full: 507
        hub.crash_in_commit()                           # the server fails with contents written and refs as before
        hub.faults.clear()                              # all is well again

        hub.requests                                    # every request: method, path, body_bytes, status, cut
        hub.asked("/commit/"), hub.uploads()            # those of a path; those that carried large files
        hub.uploaded_bytes()                            # their bytes: 0 when nothing was sent
        hub.sent_twice()                                # [] when nothing came in whole more than once

Users: alice (member of the organisation acme) by a token that writes, one that reads and one fine-grained for `alice/`
only; bob, who has no right on alice's; None is a stranger. A new repository has a first commit with `.gitattributes`,
as on the Hub. Files that are large by suffix, above 10 MB or binary are sent by LFS or Xet, and lie at an address of
their own, as on the Hub's CDN: `/resolve/` redirects to `/objects/`.

The client tries six times over 23 s when the network stays down (LFS, most of the API) and gives up within 1 s by Xet.
`create_commit` never sends a commit again, `upload_folder` does.

Its parts: `store` (disk), `access` (tokens), `app` (one request), `routes`, `repos`, `cards`, `tree`, `discussions` and
`extras` (the API), `uploads` and `commits` (to a commit), `files`, `storage`, `lfs`, `xet` and `xet_format` (contents),
`faults`, and `local` (all).
"""

from testing.local_hub.access import ALICE, ALICE_ALONE, ALICE_READS, BOB, Token
from testing.local_hub.local import LocalHub

__all__ = ["ALICE", "ALICE_ALONE", "ALICE_READS", "BOB", "LocalHub", "Token"]
