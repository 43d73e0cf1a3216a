"""Answers to files, those that are there and those that a camera drops while one waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bundle.answers import Answer, answers_in_words
from deploy.bundle.runtime import Runtime
from deploy.bundle.samples import SUFFIXES, read_samples
from deploy.errors import UserError
from deploy.record import Record

_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Answered:
    """What the model says of one sample."""

    sample: str
    answer: Answer

    def as_json(self) -> dict[str, Any]:
        """Return it as one object."""
        return {"sample": self.sample, **self.answer.data}


class NoAnswer(Record, frozen=True):
    """Why a file that came has no answer."""

    sample: str
    error: str


def answers(runtime: Runtime, path: Path, *, top: int) -> list[Answered]:
    """Answer for an image, a folder of images, a table, or an ``.npy`` array.

    Raises:
        UserError: as ``read_samples`` and ``answers_in_words`` do.
    """
    given = read_samples(path, runtime.metadata.raw, runtime.metadata.preprocess)
    found = answers_in_words(runtime.predict(given.x), runtime.metadata, top=top)
    return [Answered(*pair) for pair in zip(given.names, found, strict=True)]


def answers_as_they_come(
    runtime: Runtime, folder: Path, *, top: int, stop: threading.Event, every_s: float = 0.5
) -> Iterator[Answered | NoAnswer]:
    """Answer for every image and array in a folder and for each that comes, until told to stop.

    Args:
        runtime: the open bundle.
        folder: where a camera drops files; those inside its folders are not looked at.
        top: classes a sample.
        stop: ends it once set.
        every_s: seconds between two looks.

    Raises:
        UserError: if the folder is none, or is gone.
    """
    for path in whole_files(folder, stop=stop, every_s=every_s):
        yield from _answers_or_why_not(runtime, path, top=top)


def _answers_or_why_not(runtime: Runtime, path: Path, *, top: int) -> Sequence[Answered | NoAnswer]:
    try:
        return answers(runtime, path, top=top)
    except UserError as error:
        return [NoAnswer(sample=path.name, error=" ".join(str(error).split()))]


def whole_files(folder: Path, *, stop: threading.Event, every_s: float) -> Iterator[Path]:
    """Yield each file of a kind that can be read, once it is whole, oldest first, until stopped.

    A file is whole when two looks in a row find it of the same size, and not empty. Names that begin
    with a dot are still being written. A file that is written anew comes again.

    Raises:
        UserError: if the folder is none, or is gone.
    """
    before: dict[Path, _Stamp] = {}
    given: dict[Path, _Stamp] = {}
    while True:
        now = _stamps(folder)
        # What is gone is forgotten: the memory of this does not grow with the days.
        given = {path: stamp for path, stamp in given.items() if path in now}
        for path in sorted(now, key=lambda path: (now[path][0], path.name)):
            if now[path] == before.get(path) and now[path] != given.get(path):
                given[path] = now[path]
                yield path
                if stop.is_set():
                    return
        before = now
        if stop.wait(every_s):
            return


def _stamps(folder: Path) -> dict[Path, _Stamp]:
    """Return when each file was last written, its size, and which file it is."""
    found = {}
    try:
        for path in folder.iterdir():
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                facts = _facts(path)
                if facts is not None:
                    found[path] = facts
    except OSError as error:
        raise UserError(f"{folder}: cannot be watched ({error.strerror}); give a folder") from error
    return found


def _facts(path: Path) -> _Stamp | None:
    try:
        facts = path.stat()
    except FileNotFoundError:  # gone since
        return None
    return (facts.st_mtime_ns, facts.st_size, facts.st_ino) if facts.st_size else None
