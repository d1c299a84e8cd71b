"""Sampling: a network, a plan and prompts in, images out. Nothing here knows of training or scoring."""
