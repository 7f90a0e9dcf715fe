"""Recomputes the figures of a published model: the rooms of `imagelm verify`."""
