"""The mathematics of diffusion: tensors in, tensors out. No files, no global random state, no devices chosen here."""
