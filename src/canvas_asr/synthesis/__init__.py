"""Synthetic speech for training and tests: voices, phonemes with their positions, augmentation, manifests."""
