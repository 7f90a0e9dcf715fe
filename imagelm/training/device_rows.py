"""Training rows in the memory of the device that reads them.

One idea: token rows are small, so a whole split fits on a GPU. A batch is then one indexing there, and the host sends
nothing but the numbers of the rows, which Trainer's own sampler draws as for any dataset.
"""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from imagelm.metrics import IGNORE_INDEX

READ_ROWS = 8192  # at once
MAX_SHARE = 0.5  # of a GPU's free memory; the model and its activations need the rest


class DeviceRows(torch.utils.data.Dataset):
    """The column `input_ids` of a dataset as one matrix on a device.

    `RowCollator` makes the same batches from it as from the dataset. A loader's workers can't read it.

    Args:
        rows: With the column `input_ids`; rows may differ in length.
        device: Where the matrix is kept.
        pad_id: Fills short rows, as the tokenizer's padding does.

    Attributes:
        rows: The dataset.
        ids: int16 or int32, shape (rows, longest row).
        lengths: Of the rows; int64, shape (rows,), on the host, so that no batch asks the device for its size.
    """

    def __init__(self, rows: Dataset, device: torch.device, pad_id: int) -> None:
        self.rows = rows
        table = rows.with_format("arrow")
        parts = [table[start : start + READ_ROWS]["input_ids"] for start in range(0, len(rows), READ_ROWS)]
        self.lengths = np.concatenate([part.combine_chunks().value_lengths().to_numpy() for part in parts])
        values = [part.combine_chunks().flatten().to_numpy() for part in parts]
        highest = max(pad_id, *(int(part.max()) for part in values))
        dtype = np.int16 if highest <= np.iinfo(np.int16).max else np.int32  # torch indexes no uint16 on a GPU
        ids = np.full((len(rows), int(self.lengths.max())), pad_id, dtype=dtype)
        ids[np.arange(ids.shape[1]) < self.lengths[:, None]] = np.concatenate(values)
        self.ids, self.pad_id = torch.from_numpy(ids).to(device), pad_id

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """A whole batch as the only entry of a list.

        `input_ids` and `labels`: int64, shape (len(indices), longest row of the batch); labels are −100 at padding.
        """
        lengths = self.lengths[indices]
        longest = int(lengths.max())
        device = self.ids.device
        ids = self.ids[_sent(np.asarray(indices), device)][:, :longest].long()
        if (lengths == longest).all():
            return [{"input_ids": ids, "labels": ids.clone()}]
        padded = torch.arange(longest, device=device) >= _sent(lengths, device)[:, None]
        return [{"input_ids": ids, "labels": ids.masked_fill(padded, IGNORE_INDEX)}]


def fits_on(device: torch.device, num_rows: int, max_length: int) -> bool:
    """Whether the rows take at most half of a GPU's free memory; on a CPU they are in memory anyway."""
    if device.type != "cuda":
        return True
    return 2 * num_rows * max_length <= MAX_SHARE * torch.cuda.mem_get_info(device)[0]


def _sent(values: np.ndarray, device: torch.device) -> Tensor:
    """Small numbers on the device; the copy doesn't wait for it."""
    return torch.from_numpy(values).to(device, non_blocking=True)
