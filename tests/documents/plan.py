"""The plan of the package, drawn from its imports: python -m tests.documents.plan."""

from collections import Counter
from functools import cache

from tests.documents.test_house import BELOW, MODULES, room, siblings


@cache
def depth(module: str) -> int:
    """Files in the longest chain of imports that begins at a module."""
    return 1 + max(map(depth, siblings(module)), default=0)


def main() -> None:
    """Print rooms, arrows, what runs up, and how long chains are."""
    arrows = Counter(
        (room(module), room(other))
        for module in MODULES
        for other in siblings(module)
        if room(module) != room(other)
    )
    for name in BELOW:
        files = [module for module in MODULES if room(module) == name]
        targets = [f"{b} ({n})" for (a, b), n in sorted(arrows.items()) if a == name]
        print(f"{name:12} {len(files):3} files -> {', '.join(targets) or '-'}")
    upward = [(a, b) for a, b in arrows if b not in BELOW[a]]
    folders = Counter(module.rpartition(".")[0] for module in MODULES)
    folder, number = folders.most_common(1)[0]
    print(f"upward: {upward or 'none'}; no circle between {len(MODULES)} files")
    print(f"largest folder: {folder} ({number} files); longest chain: {max(map(depth, MODULES))}")


if __name__ == "__main__":
    main()
