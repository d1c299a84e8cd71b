"""Frozen encoders: images to latents, captions to embeddings, and the networks that score and read images."""
