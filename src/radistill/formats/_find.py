"""Which files hold what was asked for.

Parallel text in a folder is found by name: `{split}.de-en.json` (or `.jsonl`, `.parquet`), `{split}.de-en.de` with
`{split}.de-en.en`, `{split}.de-en.tsv`, in the folder itself or in a subfolder named for the pair (`deen`, `ende`,
`de-en`). A direction's own file is preferred; else the file of the other direction is read backwards. Then come
`{split}.de` with `{split}.en`, then `{split}.source` with `{split}.target`, and last whole files: `{split}.json` and
the like.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from radistill.errors import DataError, did_you_mean
from radistill.formats import _objects
from radistill.formats.base import CODE, UNNAMED, Pair
from radistill.instructions import is_language

KINDS = ("objects", "lines", "tsv")
_NAMED_PAIR = re.compile(rf"(?:^|[._-])({CODE})-({CODE})(?=\.|$)")
NAME_THEM = (
    "Name them: pairs: [de-en]. A task without languages needs none: give data.template a wording of your own, such as "
    "'Summarise: {source}'."
)
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Found:
    """Files to read together, and the directions to make of them."""

    kind: str
    """`objects`, `lines` or `tsv`."""
    files: tuple[Path, ...]
    columns: Pair | None = None
    """Languages of the files or columns, in order, where the name tells or the user told."""
    pairs: tuple[Pair, ...] = ()
    """Empty: the rows are conversations, or name their languages themselves."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for."""

    path: Path
    split: str
    pairs: tuple[Pair, ...] = ()
    kinds: tuple[str, ...] = KINDS
    is_test: bool = False
    needs_languages: bool = True
    """Whether source and target must be told by their languages; a wording that names none needs none."""
    notes: list[str] = field(default_factory=list)
    """Filled while searching: choices that the user should see."""


def find(wanted: Wanted) -> tuple[Found, ...]:
    """The files of a source.

    Raises:
        DataError: there is nothing at the path, or not what was asked for.
    """
    if wanted.path.is_dir():
        return _in_folder(wanted)
    if wanted.path.is_file():
        return (_one_file(wanted),)
    return (_line_files(wanted),)


def _in_folder(wanted: Wanted) -> tuple[Found, ...]:
    if named := _named_for_pairs(wanted):
        return _directions(wanted, named)
    codes = _codes_beside(wanted.path / wanted.split)
    two_files = (codes and (wanted.pairs or len(codes) == 2)) or _sides_beside(wanted.path / wanted.split)
    if "lines" in wanted.kinds and two_files:
        return (_line_files(replace(wanted, path=wanted.path / wanted.split)),)
    whole = [
        _one_file(replace(wanted, path=file))
        for file in sorted(wanted.path.iterdir())
        if re.fullmatch(rf"{re.escape(wanted.split)}(-.*)?", file.stem) and _kind(file) in wanted.kinds
    ]
    if whole:
        return tuple(whole)
    raise _nothing_of_the_split(wanted)


def _nothing_of_the_split(wanted: Wanted) -> DataError:
    inside = sorted(wanted.path.iterdir())
    deeper = (file for folder in inside if folder.is_dir() for file in sorted(folder.iterdir()))
    names = [str(p.relative_to(wanted.path)) for p in (*inside, *deeper) if p.is_file()]
    splits = sorted({re.split(r"[.-]", Path(name).name)[0] for name in names})
    if wanted.split in splits and wanted.kinds != KINDS:
        return DataError(
            f"{wanted.path} has files of the split {wanted.split!r}, but none of the format asked for. It holds "
            f"{_shown(names)}. Set `format: auto`, or name a file."
        )
    hint = "" if wanted.split in splits else did_you_mean(wanted.split, splits)
    return DataError(
        f"{wanted.path} has no files of the split {wanted.split!r} that can be read. It holds {_shown(names)}.{hint} "
        "Name a file, or the split with split=NAME."
    )


def _named_for_pairs(wanted: Wanted) -> dict[Pair, Found]:
    """The best files of each direction in whose name they are; the others are noted."""
    best: dict[Pair, Found] = {}
    for found in sorted(_candidates(wanted), key=lambda f: _rank(f, wanted.path)):
        assert found.columns is not None, "found by the pair in its name"
        if kept := best.get(found.columns):
            wanted.notes.append(f"{kept.files[0]} is read, {found.files[0]} is not: both hold {found.columns}")
        else:
            best[found.columns] = found
    return best


def _candidates(wanted: Wanted) -> Iterator[Found]:
    name = re.compile(rf"{re.escape(wanted.split)}\.({CODE})-({CODE})\.(\w+)")
    for folder in (wanted.path, *sorted(p for p in wanted.path.iterdir() if p.is_dir())):
        for file in sorted(folder.iterdir()):
            match = name.fullmatch(file.name)
            pair = _pair(match, wanted)
            if match is None or pair is None or not (folder == wanted.path or _named_for(folder, pair)):
                continue
            if match[3] in pair and "lines" in wanted.kinds:
                both = (file.with_suffix(f".{pair.source}"), file.with_suffix(f".{pair.target}"))
                # Seen from its first file, or from its only one.
                if file == next(f for f in both if f.is_file()):
                    yield Found("lines", both, pair)
            elif _kind(file) in wanted.kinds:
                yield Found(_kind(file), (file,), pair)


def _pair(match: re.Match[str] | None, wanted: Wanted) -> Pair | None:
    """The pair in a file's name; `my-set` is none, unless it was asked for."""
    if match is None or match[1] == match[2]:
        return None
    pair = Pair(match[1], match[2])
    known = all(map(is_language, pair)) or pair in wanted.pairs or pair.back in wanted.pairs
    return pair if known else None


def _named_for(folder: Path, pair: Pair) -> bool:
    name = re.sub(r"[^a-z0-9]", "", folder.name.lower())
    codes = [code.replace("_", "").lower() for code in pair]
    return name in ("".join(codes), "".join(reversed(codes)))


def _rank(found: Found, top: Path) -> tuple[bool, int, int, str]:
    incomplete = not all(file.is_file() for file in found.files)
    depth = len(found.files[0].relative_to(top).parts)
    return (incomplete, depth, KINDS.index(found.kind), found.files[0].name)


def _kind(file: Path) -> str:
    if file.suffix in _objects.SUFFIXES:
        return "objects"
    return "tsv" if file.suffix == ".tsv" else ""


def _directions(wanted: Wanted, named: dict[Pair, Found]) -> tuple[Found, ...]:
    chosen: dict[tuple[Path, ...], Found] = {}
    for pair in wanted.pairs or tuple(named):
        found = named.get(pair) or named.get(pair.back)
        if found is None:
            there = [str(p) for p in named]
            raise DataError(
                f"{wanted.path} has no {wanted.split!r} files for the pair {pair}. Pairs there: {', '.join(there)}, "
                f"each also backwards.{did_you_mean(str(pair), there)}"
            )
        if pair not in named:
            _note_backwards(wanted, found.files[0], pair)
        _check_complete(found.files)
        before = chosen.get(found.files, found)
        chosen[found.files] = replace(before, pairs=(*before.pairs, pair))
    return tuple(chosen.values())


def _note_backwards(wanted: Wanted, file: Path, pair: Pair) -> None:
    if wanted.is_test:
        wanted.notes.append(
            f"{pair} is tested on {file} read backwards, for want of a file of its own: its sources are translations, "
            "which are easier to translate than original text"
        )


def _one_file(wanted: Wanted) -> Found:
    file, pair = wanted.path, _pair(_NAMED_PAIR.search(wanted.path.name), wanted)
    kind = _kind(file) or _sniffed(wanted, pair)
    if kind not in wanted.kinds:
        raise DataError(f"{file} does not look like the format asked for. Set `format: auto`, or name other files.")
    if kind == "lines":
        return _line_files(wanted)
    columns = pair or (wanted.pairs[0] if wanted.pairs else None)
    if kind == "tsv" and columns is None:
        columns = _without_languages(wanted, f"{file} does not say which languages its columns are")
    for asked in wanted.pairs:
        if pair and asked == pair.back:
            _note_backwards(wanted, file, asked)
    named = UNNAMED if columns == UNNAMED else pair
    return Found(kind, (file,), columns, wanted.pairs or ((named,) if named else ()))


def _without_languages(wanted: Wanted, what: str) -> Pair:
    """The columns of a task without languages; `what` begins the message if the wording names languages."""
    if wanted.needs_languages:
        raise DataError(f"{what}. {NAME_THEM}")
    return UNNAMED


def _sniffed(wanted: Wanted, pair: Pair | None) -> str:
    file = wanted.path
    code = file.suffix.removeprefix(".")
    if code in {*(pair or ()), *(c for p in wanted.pairs for c in p), *UNNAMED} or is_language(code):
        return "lines"
    first = next((line for _, line in _objects.numbered_lines(file) if line.strip()), "")
    if first.lstrip()[:1] in ("{", "["):
        return "objects"
    if "\t" in first:
        return "tsv"
    raise DataError(
        f"cannot tell the format of {file}: its name ends in {file.suffix or 'nothing'}, its first line is "
        f"{first[:60]!r}. Known are .json, .jsonl, .parquet, .tsv, and line files whose names end in their language, "
        "as FILE.de + FILE.en, or FILE.source + FILE.target."
    )


def _line_files(wanted: Wanted) -> Found:
    """Line files from the name of one of them or from what their names have in common."""
    path = wanted.path
    stem = path.with_suffix("") if path.is_file() else path
    codes = _codes_beside(stem, extra={c for p in wanted.pairs for c in p})
    by_side = _sides_beside(stem) and (len(codes) < 2 or (path.is_file() and path.suffix[1:] in UNNAMED))
    if not codes and not by_side:
        raise _missing(path)
    named = _pair(_NAMED_PAIR.search(stem.name), wanted)
    columns = named or (wanted.pairs[0] if wanted.pairs else None)
    if columns is None and by_side:
        columns = _without_languages(wanted, f"{stem}.source and .target do not say which languages they are in")
    if columns is None:
        raise DataError(
            f"{stem} has the languages {', '.join(codes)}, but which is translated into which? Say so, "
            f"for example: pairs: [{codes[0]}-{codes[-1]}]."
        )
    pairs = wanted.pairs or (columns,)
    for pair in pairs:
        if {*pair} != {*columns}:
            raise DataError(
                f"{stem} has no files for the pair {pair} beside {columns}. "
                f"Languages there: {', '.join(columns if by_side else codes)}. "
                "Put the pairs into one folder as train.de-en.de + train.de-en.en."
            )
        if named and pair == columns.back:
            _note_backwards(wanted, stem, pair)
    source, target = (Path(f"{stem}.{end}") for end in (UNNAMED if by_side else columns))
    _check_complete((source, target))
    return Found("lines", (source, target), columns, pairs)


def _sides_beside(stem: Path) -> bool:
    return any(Path(f"{stem}.{side}").is_file() for side in UNNAMED)


def _codes_beside(stem: Path, extra: Sequence[str] | set[str] = ()) -> list[str]:
    """Languages for which there is a file `stem.LANGUAGE`."""
    if not stem.parent.is_dir():
        return []
    ends = (p.name.removeprefix(f"{stem.name}.") for p in stem.parent.iterdir() if p.name.startswith(f"{stem.name}."))
    return sorted(end for end in ends if end in extra or is_language(end))


def _check_complete(files: tuple[Path, ...]) -> None:
    for absent in (file for file in files if not file.is_file()):
        there = " and ".join(str(file) for file in files if file != absent)
        raise DataError(f"{there} stands alone: {absent} is missing. Aligned line files come in twos, one per side.")


def _missing(path: Path) -> DataError:
    there = path.parent
    absent = path
    while not there.is_dir() and there != there.parent:
        there, absent = there.parent, there
    names = sorted(p.name for p in there.iterdir()) if there.is_dir() else []
    where = f"The working directory ({there.absolute()})" if there == Path() else str(there)
    return DataError(f"no file or folder {path}. {where} holds {_shown(names)}.{did_you_mean(absent.name, names)}")


def _shown(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
