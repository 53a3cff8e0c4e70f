"""Comparison of rebuilt fixtures with those committed; runs in the environment of any peer.

python benchmarks/peers/compare.py REBUILT COMMITTED

Exits with 1 if a case or a file is missing, a text differs, or logits differ by more than 1e-5.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open

TOLERANCE = 1e-5
TEXTS = {".txt", ".src", ".hyp", ".yaml"}


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def same(ours: Path, theirs: Path) -> bool:
    """True if two files say the same, as far as they are texts."""
    if ours.suffix == ".json":
        return json.loads(ours.read_bytes()) == json.loads(theirs.read_bytes())
    return ours.suffix not in TEXTS or ours.read_bytes() == theirs.read_bytes()


def differences(rebuilt: Path, committed: Path) -> list[str]:
    """Sentences on what differs in a case."""
    ours, theirs = ({path.name for path in folder.iterdir()} for folder in (committed, rebuilt))
    if ours != theirs:
        return [f"files differ: {', '.join(sorted(ours ^ theirs))}"]
    found = [f"{name} differs" for name in sorted(ours) if not same(committed / name, rebuilt / name)]
    new, new_facts = read(rebuilt / "expected.safetensors")
    old, old_facts = read(committed / "expected.safetensors")
    if new_facts["versions"] != old_facts["versions"]:
        print(f"  {committed.name}: made with {old_facts['versions']}, rebuilt with {new_facts['versions']}")
    if json.loads(new_facts["facts"]) != json.loads(old_facts["facts"]):
        found.append("facts differ")
    if new.keys() != old.keys():
        return [*found, f"tensors differ: {', '.join(sorted(new.keys() ^ old.keys()))}"]
    for name, tensor in old.items():
        if tensor.shape != new[name].shape:
            found.append(f"{name}: {tuple(new[name].shape)} instead of {tuple(tensor.shape)}")
        elif not torch.allclose(new[name].double(), tensor.double(), rtol=0, atol=TOLERANCE):
            found.append(f"{name}: up to {(new[name].double() - tensor.double()).abs().max():.1e} apart")
    return found


def main() -> None:
    """Compare every case that was rebuilt."""
    rebuilt, committed = map(Path, sys.argv[1:])
    bad = False
    for path in sorted(rebuilt.glob("*/*")):
        case = path.relative_to(rebuilt)
        wrong = differences(path, committed / case) if (committed / case).is_dir() else ["not among the fixtures"]
        print(f"{case}: {'; '.join(wrong) if wrong else 'the same'}")
        bad |= bool(wrong)
    sys.exit(bad)


if __name__ == "__main__":
    main()
