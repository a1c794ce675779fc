"""Records 11_inception.npz from pytorch-fid and torch-fidelity. Run it from the repository's root.

pip install pytorch-fid torch-fidelity, and then: python tests/golden/record_inception.py
"""

import datetime
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import golden_inception as rule  # noqa: E402


def main() -> None:
    state = rule.pytorch_state()
    arrays = {}
    for preprocessing, peer in rule.peers(state).items():
        for size in rule.SIZES:
            pool, spatial, logits = peer(rule.images(size))
            key = f"{preprocessing}/{size}"
            arrays[f"{key}/pool"] = pool[:, rule.POOL]
            arrays[f"{key}/spatial"] = spatial[:, rule.SPATIAL]
            arrays[f"{key}/logits"] = logits[:, rule.LOGITS]
            print(key, *(f"{a.std():.3g}" for a in (pool, spatial, logits)), flush=True)
    packages = ("torch", "torchvision", "pytorch-fid", "torch-fidelity")
    arrays["entries"] = np.array(json.dumps([(k, list(v.shape)) for k, v in state.items()]))
    arrays["provenance"] = np.array(
        json.dumps(
            {
                "date": datetime.date.today().isoformat(),
                "versions": {name: version(name) for name in packages},
                "code": "pytorch_fid.inception; torch_fidelity.feature_extractor_inceptionv3",
            }
        )
    )
    path = Path(__file__).with_name("11_inception.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
