"""Whether two codecs give the same tokens."""

from __future__ import annotations

import torch

from imagelm.remote_code.codec_imagelm import Codec


def codec_differences(theirs: Codec, ours: Codec, there: str = "there", here: str = "here") -> list[str]:
    """In what two codecs differ, such as `patch_size is 4 there, 8 here`; empty if every token means the same."""
    names = sorted(theirs.config.keys() | ours.config.keys())
    entries = ((name, theirs.config.get(name), ours.config.get(name)) for name in names)
    if differences := [f"{name} is {a} {there}, {b} {here}" for name, a, b in entries if a != b]:
        return differences
    both = theirs.tensors.keys() & ours.tensors.keys()
    changed = {name for name in both if not torch.equal(theirs.tensors[name], ours.tensors[name])}
    return [f"its {name} has other values" for name in sorted(changed | (theirs.tensors.keys() ^ ours.tensors.keys()))]
