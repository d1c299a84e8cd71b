"""Figures and the static report page of a study."""
