"""The options of `imagelm export`."""

from __future__ import annotations

from dataclasses import dataclass

from imagelm.utils.command_line import option


@dataclass(kw_only=True)
class ExportArguments:
    """Which model becomes which folder."""

    model: str = option(
        "trained folder, such as outputs/mine/best_model, or Hub id", group="Options", metavar="FOLDER|ID"
    )
    output_dir: str = option("folder to write; it is complete or absent", metavar="FOLDER")
    int8: bool = option("8-bit weights: smaller and faster, with slightly different results", False)
    overwrite: bool = option("replace an existing export in --output_dir", False)
