"""A Hub on loopback for tests, which works with the unmodified `huggingface_hub` client, hf_xet included.

README.md shows how to use it.
"""

from testing.local_hub.access import ALICE, ALICE_ALONE, ALICE_READS, BOB, Token
from testing.local_hub.local import LocalHub

__all__ = ["ALICE", "ALICE_ALONE", "ALICE_READS", "BOB", "LocalHub", "Token"]
