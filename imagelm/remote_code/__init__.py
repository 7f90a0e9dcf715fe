"""The files that are published beside a model: they stand alone and import nothing of this package."""
