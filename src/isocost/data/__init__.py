"""Captioned images: drawn scenes, shards and folders of files, and prompts."""
