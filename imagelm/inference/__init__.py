"""Model → answers: classes, next tokens, likelihoods, new and completed images. `imagelm infer` is its command line."""
