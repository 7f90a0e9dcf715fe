"""Model → answers: classes, next tokens, likelihoods, new and completed images. `inference.py` is its command line."""
