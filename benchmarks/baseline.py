"""Where we start from: sampling and training of one micro member beside diffusers' pipeline and training loop.

    python benchmarks/baseline.py

`ratio` is images per core-second of our sampling over theirs, `ratios` holds training's; above 1 is better.
"""

from __future__ import annotations

import json

import sampling
import training


def main() -> None:
    sampled, trained = sampling.measure(), training.measure()
    result = {
        "name": f"{sampled['name']}; {trained['name']}",
        "ratio": sampled["ratio"],
        "ratios": {"training": trained["ratio"]},
        "images_per_core_second": {
            name: r["images_per_core_second"] for name, r in (("sampling", sampled), ("training", trained))
        },
        "baseline": f"{sampled['baseline']}; {trained['baseline']}",
        "device": sampled["device"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
