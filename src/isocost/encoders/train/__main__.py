"""`python -m isocost.encoders.train FOLDER [NAME ...]`: train the shipped encoders anew."""

from __future__ import annotations

import argparse

import torch

from isocost.encoders.train.assets import ASSETS, train_assets


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m isocost.encoders.train", description=train_assets.__doc__)
    parser.add_argument("folder", help="where to write; each asset gets a folder of its name inside")
    parser.add_argument("only", nargs="*", help=f"which ones (all): {', '.join(ASSETS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train_assets(arguments.folder, arguments.only or None)


if __name__ == "__main__":
    main()
