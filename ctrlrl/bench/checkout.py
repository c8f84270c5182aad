"""The authors' modules, imported as they stand from a checkout of their repository.

Only packages that no gradient step needs (d4rl, gym, pyrallis, tqdm, wandb) are stand-ins while they are imported. The
name that goes with them says the commit, and by git's own hash which files are not that commit's.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

NOT_NEEDED = ("d4rl", "gym", "pyrallis", "tqdm", "wandb")


class Repository(NamedTuple):
    name: str
    commit: str
    files: dict[str, dict[str, str]]  # algorithm -> path -> git blob id at the commit


REPOSITORIES = {
    "corl": Repository(
        "tinkoff-ai/CORL",
        "6afec90484bbf47dee05fdf525e26a3ebe028e9b",
        {
            "iql": {"algorithms/offline/iql.py": "257184f589b7edf6e2fedd3974e029b1430026dc"},
            "td3bc": {"algorithms/offline/td3_bc.py": "a78bda300fa5a7ecd041467e83dda57490cfbd2e"},
        },
    ),
    "prdc": Repository(
        "LAMDA-RL/PRDC",
        "9f384640d52ff288e57ced09fc617617b557b3d1",
        {
            "prdc": {
                "prdc.py": "ca53494e6a90c84990b940892eaf4a84630da219",
                "net/actor.py": "566608e49d5eb8d4f07e813d507e12a12aec66a1",
                "net/critic.py": "4b83b8c5f882c4cfc00f2af005527e56980b44b5",
                "utils/buffer.py": "350422fd46d10a4d12e1b1b560d661c0d21fbb4c",
            }
        },
    ),
    "a2pr": Repository(
        "ltlhuuu/A2PR",
        "f92a2a4e638c0a72718fbc8c67e7a66030db5f9c",
        {
            "a2pr": {
                "A2PR.py": "08dc96de2565757cf3a991472f8ed25e049ae258",
                "core/network/actor.py": "35414ebd2b95b7c4d08877de62296832233c2dcc",
                "core/network/critic.py": "35c8fbbcad2dc810089d3b903d56a6bfbe2b5f4e",
                "utils/buffer.py": "33079b61a3fff8568243238fa5a39546159d28f0",
            }
        },
    ),
}


def checkout(vs: str, algo: str, peer_dir: str | None) -> tuple[list[ModuleType], str]:
    """The authors' modules for an algorithm, and the name of the peer. ValueError says what is missing and the mend."""
    if vs not in REPOSITORIES:
        raise ValueError(f"updates compares with vs={', '.join(REPOSITORIES)}, floor or single, got {vs}")
    repository = REPOSITORIES[vs]
    if algo not in repository.files:
        raise ValueError(f"vs={vs} holds algo={', '.join(repository.files)}, got algo={algo}")
    files = repository.files[algo]
    root = Path(peer_dir or ".").resolve()
    missing = next((path for path in files if not (root / path).is_file()), None)
    if peer_dir is None or missing is not None:
        what = "needs peer_dir=FOLDER" if peer_dir is None else f"found no {missing} in peer_dir={peer_dir}"
        raise ValueError(f"vs={vs} {what}: a checkout of {repository.name} at commit {repository.commit[:12]}")
    changed = [path for path, blob in files.items() if _blob(root / path) != blob]
    name = f"{repository.name} {algo} @ {repository.commit[:12]}" + (
        f", changed: {' '.join(changed)}" if changed else ""
    )
    with _importing_from(root):
        try:
            modules = [import_module(path.removesuffix(".py").replace("/", ".")) for path in files]
        except ImportError as error:
            raise ValueError(f"vs={vs}: the authors' code needs {error.name}: pip install {error.name}") from None
    return modules, name


def _blob(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Nothing:
    """Stands for a name taken from a package that is not needed; as a decorator it changes nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, function: Any) -> Any:
        return function


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


@contextlib.contextmanager
def _importing_from(root: Path) -> Iterator[None]:
    """Imports look into the checkout first. Its modules are then forgotten: the repositories share their names."""
    own = {path.stem for path in root.iterdir()}
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in own}
    stand_ins = [name for name in NOT_NEEDED if name not in sys.modules]
    for name in hidden:
        del sys.modules[name]
    sys.modules.update({name: _StandIn(name) for name in stand_ins})
    sys.path.insert(0, str(root))
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the checkout stays as it is
    try:
        yield
    finally:
        sys.path.remove(str(root))
        sys.dont_write_bytecode = writes
        for name in [n for n in sys.modules if n in stand_ins or n.partition(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(hidden)
