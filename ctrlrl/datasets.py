"""`ctrlrl data info | check | convert | collect`: from words to what is printed and the files that are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ctrlrl import settings
from ctrlrl.collect import CollectOptions, collect_data
from ctrlrl.data.card import card_text, data_card
from ctrlrl.data.check import check
from ctrlrl.data.columns import observations, opened
from ctrlrl.data.d4rl_files import FILES as D4RL_IDS
from ctrlrl.data.download import unknown_id
from ctrlrl.data.episodes import Array, Episodes
from ctrlrl.data.limits import complete
from ctrlrl.data.load import find, load
from ctrlrl.data.ogbench import FILES as OGBENCH_IDS
from ctrlrl.data.ogbench import SINGLE_TASKS
from ctrlrl.data.write import layout_of, write
from ctrlrl.disk import naming, remove, strict_json, sync_folder, write_atomic
from ctrlrl.registry import unknown
from ctrlrl.sources import CACHE, load_data

USAGE = """ctrlrl data info     PATH|id [data.id=ID] [reference=PATH] [ref_min=R ref_max=R] [out=card.json|card.png]
ctrlrl data check    PATH|id [data.id=ID]
ctrlrl data convert  PATH|id [data.id=ID] out=FILE|FOLDER [format=rollouts|d4rl|ogbench|minari] [overwrite=true]
ctrlrl data collect  run=runs/x | env=hopper-v4 policy=random|FILE  steps=100_000 noise=0.0,0.1 seed=0 out=FILE
ctrlrl data collect  env=Meta-World/push-v3 policy=expert episodes=50 successful=true [first_steps=200]  out=FILE"""
Answer = tuple[str, int]  # what is printed, exit code


@dataclass
class Named:
    id: str | None = None  # in the data set's collection, where neither file nor name tells it


@dataclass
class CheckOptions:
    data: Named = field(default_factory=Named)


@dataclass
class InfoOptions(CheckOptions):
    out: str | None = None  # card.json or card.png
    reference: str | None = None  # a data set of the same task: SACo's denominator
    ref_min: float | None = None  # mean return of a random policy: score 0
    ref_max: float | None = None  # of an expert: score 100


@dataclass
class ConvertOptions(CheckOptions):
    out: str = ""
    format: str | None = None  # rollouts, d4rl, ogbench or minari; null = by the ending of `out`
    overwrite: bool = False


def run(words: Sequence[str]) -> Answer:
    """The answer to the words after `ctrlrl data`; ValueError in one line for what does not fit."""
    if not words or words[0] == "help" or {"--help", "-h"} & {*words}:
        own = {"info": InfoOptions, "check": CheckOptions, "convert": ConvertOptions, "collect": CollectOptions}
        listed = (f"keys of {name:<8} {settings.keys_text(kind)}" for name, kind in own.items())
        return "\n".join([USAGE, "", *listed]), 0
    if words[0] not in ACTIONS:
        raise ValueError(unknown("action of data", words[0], ACTIONS))
    return ACTIONS[words[0]](list(words[1:]))


def info(words: list[str]) -> Answer:
    name, rest = _source("info", words)
    options = settings.command(InfoOptions, rest)
    out = None if options.out is None else Path(options.out)
    if out is not None and out.suffix not in (".json", ".png"):
        raise ValueError(f"out={out}: a card is written as .json or, with pictures, as .png")
    episodes = read(name, options.data.id)
    reference = None if options.reference is None else read(options.reference)
    card = data_card(episodes, reference=reference, ref_min=options.ref_min, ref_max=options.ref_max)
    if out is None:
        return card_text(card), 0
    _make_parent(out)
    if out.suffix == ".json":
        write_atomic(out, strict_json(card, indent=2).encode())
    else:
        from ctrlrl.report.data_picture import data_png

        episodes.must_be_in_order(f"out={out}, with a picture of returns,")
        marks = {"score 0": card["ref_min"], "score 100": card["ref_max"]} if "ref_min" in card else {}
        title = f"{card['data_id'] or Path(card['path']).name}, {card['rows']:,} rows, {card['episodes']:,} episodes"
        write_atomic(out, data_png(title, episodes.returns(), episodes.lengths(), episodes.action, marks))
    return f"{card_text(card)}\n{out}", 0


def examine(words: list[str]) -> Answer:
    """Exit code 1 where there is a defect: the file can be read, but should not be learned from as it is."""
    name, rest = _source("check", words)
    episodes = read(name, settings.command(CheckOptions, rest).data.id)
    found = check(episodes, _stored_next(episodes))
    n_defects = sum(f.defect for f in found)
    lines = [f"{name}: {episodes.n_rows:,} rows, {episodes.n_episodes:,} episodes, {_count(n_defects, 'defect')}"]
    for f in found:
        lines += [f"{'defect' if f.defect else 'note'}  {f.name}: {f.text}", f"        {f.mend}"]
    return "\n".join(lines), 1 if n_defects else 0


def convert(words: list[str]) -> Answer:
    name, rest = _source("convert", words)
    options = settings.command(ConvertOptions, rest)
    if not options.out:
        raise ValueError("convert needs out=FILE or out=FOLDER, e.g. ctrlrl data convert a.npz out=a.hdf5")
    layout = layout_of(Path(options.out), options.format)
    _free(Path(options.out), options.overwrite)
    return save(read(name, options.data.id), Path(options.out), layout, overwrite=options.overwrite), 0


def collect(words: list[str]) -> Answer:
    options = settings.command(CollectOptions, words)
    out = Path(options.out)
    layout = layout_of(out, options.format)
    _free(out, options.overwrite)
    episodes = collect_data(options)
    saved = save(episodes, out, layout, overwrite=options.overwrite)
    returns, whole = episodes.returns(), complete(episodes)
    mean = f", mean return of the {whole.sum():,} complete ones {returns[whole].mean():,.1f}" if whole.any() else ""
    return f"{saved}\n{episodes.n_rows:,} rows, {episodes.n_episodes:,} episodes{mean}", 0


ACTIONS: dict[str, Callable[[list[str]], Answer]] = {
    "info": info,
    "check": examine,
    "convert": convert,
    "collect": collect,
}


def read(name: str, data_id: str | None = None) -> Episodes:
    """A data set by path or id. data_id: what the collection calls it, where the file does not tell."""
    if os.path.lexists(name) or name.endswith((".npz", ".hdf5", ".h5")):
        return load_data(name, data_id=data_id)
    ogbench = (*OGBENCH_IDS, *SINGLE_TASKS)
    if name in D4RL_IDS:
        source = "d4rl"
    elif name in ogbench:
        source = "ogbench"
    elif "/" in name:
        source = "minari"
    else:
        raise ValueError(f"no file or folder {name} is here, and {unknown_id(name, (*D4RL_IDS, *ogbench))}")
    return load(find(source, name), data_id=None if source == "minari" else data_id or name)


def _stored_next(episodes: Episodes) -> Array | None:
    """The `next_observations` of a D4RL file, which its loader does not use."""
    if episodes.facts.format != "d4rl":
        return None
    with opened(Path(episodes.facts.path)) as columns:
        return observations(columns, "next_observations") if "next_observations" in columns.names else None


def save(episodes: Episodes, out: Path, layout: str, *, overwrite: bool) -> str:
    """Write a data set, whole or not at all; the path, and a line for each thing that the layout cannot hold."""
    _make_parent(out)
    with _replacing(out, overwrite=overwrite) as temporary:
        lost = write(episodes, temporary, layout, name=out.name)
    return "\n".join([f"{out}", *(f"not held by the {layout} layout: {line}" for line in lost)])


def _source(action: str, words: list[str]) -> tuple[str, list[str]]:
    """The one word that is no key=value, and the rest."""
    names = [word for word in words if "=" not in word or os.path.exists(word)]
    if len(names) != 1:
        raise ValueError(f"data {action} needs one data set, a path or an id, got {len(names)}; see ctrlrl data --help")
    return names[0], [word for word in words if word != names[0]]


def _count(n: int, what: str) -> str:
    return f"{n or 'no'} {what}{'' if n == 1 else 's'}"


def _make_parent(out: Path) -> None:
    with naming(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)


def _free(out: Path, overwrite: bool) -> None:
    """ValueError where `out` is taken, or holds what is not a data set: before anything long begins."""
    if out.is_symlink() or out.exists():
        if not overwrite:
            raise ValueError(f"out={out} exists; use another name, or overwrite=true")
        if out.is_dir() and not _is_minari(out):
            raise ValueError(f"out={out} is a folder, and not a Minari data set's: it is not overwritten")


def _is_minari(folder: Path) -> bool:
    held = {p.name for p in folder.iterdir()} - {CACHE}
    return held == {"data"} and (folder / "data" / "metadata.json").is_file()


@contextmanager
def _replacing(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path beside `out` to write to, which takes its place in one step, and only if nothing went wrong."""
    temporary, old = (out.with_name(f".{kind}.{out.name}") for kind in ("tmp", "old"))
    remove(temporary)
    try:
        yield temporary
        _flush(temporary)
        _free(out, overwrite)
        if out.is_dir() or temporary.is_dir():  # a folder cannot be renamed onto what is there
            remove(old)
            if out.exists():
                os.replace(out, old)
        os.replace(temporary, out)
        remove(old)
    finally:
        remove(temporary)
        if os.path.lexists(old) and not os.path.lexists(out):  # interrupted between the two renames
            os.replace(old, out)
    sync_folder(out.parent)


def _flush(path: Path) -> None:
    """A file, or a folder with all that is in it, down to the disk."""
    for part in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if part.is_dir():
            sync_folder(part)
        else:
            with naming(part), open(part, "rb") as file:
                os.fsync(file.fileno())
