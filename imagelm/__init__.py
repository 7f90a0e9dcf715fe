"""imagelm: images as sentences, learned and published with Hugging Face parts."""

__version__ = "0.2.0"
