"""The study: which cells there are, what is done, and doing the rest."""
