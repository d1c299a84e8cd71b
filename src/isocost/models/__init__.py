"""Networks: which sizes exist (`ladder`), how a spec becomes a module (`build`), and what a module costs (`cost`)."""
