"""Models on the Hugging Face hub, obtained with its own client, ``huggingface_hub``.

The client's settings apply: its cache (``HF_HOME``), tokens (``HF_TOKEN``, or what
``hf auth login`` kept), mirrors (``HF_ENDPOINT``) and ``HF_HUB_OFFLINE``.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from tqdm import TqdmWarning, tqdm

from fmkit._check import one_line
from fmkit.assets.places import AssetError
from fmkit.progress import progress

MB = 10**6  # bytes
LONG = 2.0  # seconds after which a bar shows how much has arrived
TIMEOUT_SECONDS = 10  # for the hub's list of files
WORD = r"[A-Za-z0-9_][\w.-]*"
NAME = re.compile(  # a revision refs/pr/1 has slashes; other branches may have them
    rf"({WORD}/{WORD})(?:@(refs/\w+/[^/@]+|[^@]+?))?(?:/([^@]+\.gguf))?", re.ASCII
)

commits: dict[str, str] = {}  # of the models that were obtained, by their names


@dataclass(frozen=True)
class Repository:
    """A repository at one revision, with the bytes of its files by their paths.

    If the hub was not reached, these are the files of the client's cache, which are in
    `folder`, and `reason` says why the hub was not.
    """

    id: str
    revision: str | None
    files: Mapping[str, int]
    commit: str = ""
    folder: Path | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The id and, if it was given, the revision: ``owner/name@revision``."""
        return f"{self.id}@{self.revision}" if self.revision else self.id

    @property
    def where(self) -> str:
        """Name what lists the files: the repository, or its cached part."""
        return f"the cached part of {self.name}" if self.folder else self.name

    @property
    def cause(self) -> str:
        """Say why the hub was not reached, as the end of a sentence."""
        return f", and {self.reason}" if self.reason else ""


def parsed(name: str) -> tuple[str, str | None, str | None] | None:
    """Return id, revision and GGUF file of a model's name; None if it has another form.

    A name is ``owner/name``, ``owner/name@revision``, ``owner/name/file.gguf`` or
    ``owner/name@revision/file.gguf``.
    """
    found = NAME.fullmatch(name)
    return found and found.groups()


def look_up(id: str, revision: str | None) -> Repository:
    """List the files of a repository, or those in the cache without the hub.

    Raises ``AssetError`` if there is no such repository or revision, if the reader may
    not have it, and if the hub cannot be reached and the cache has none of it.
    """
    # Not at the top, because most readers never need it. Warnings stay in a notebook
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # without widgets
        from huggingface_hub import HfApi, errors, logging, snapshot_download
    logging.set_verbosity_error()
    repository = Repository(id, revision, {})
    try:
        found = HfApi().model_info(
            id, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
        files = {file.rfilename: file.size or 0 for file in found.siblings or []}
        return Repository(id, revision, files, found.sha)
    except Exception as error:  # of whatever kind: the client has no common class
        reason = _reason(error, repository)
        try:
            if isinstance(error, errors.RevisionNotFoundError):
                raise
            cached = snapshot_download(
                id, revision=revision, local_files_only=True, allow_patterns=[]
            )
        except Exception:
            raise AssetError(
                f"{repository.name} is no file or folder here, and {reason}."
            ) from error
    folder = Path(cached)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return Repository(id, revision, files, folder.name, folder, reason)


def obtain(repository: Repository, files: Iterable[str]) -> Path:
    """Return the folder of the client's cache, once it has these `files`.

    A bar shows how much has arrived if it takes more than two seconds. The commit is
    kept in :data:`commits`. Raises ``AssetError`` if a file cannot be obtained.
    """
    wanted = [*files]
    folder = repository.folder or _downloaded(repository, wanted)
    if missing := [file for file in wanted if not (folder / file).is_file()]:
        raise AssetError(f"{repository.where} has no {missing[0]}{repository.cause}.")
    commits[repository.name] = folder.name
    return folder


def _downloaded(repository: Repository, wanted: list[str]) -> Path:
    """Download files into the client's cache, and return their folder there."""
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

    bars: list[tqdm] = []

    class Counter(tqdm):  # in place of the client's own bars, which stay in a notebook
        def __init__(self, *arguments: object, **options: object):
            super().__init__(*arguments, **options | {"disable": True})
            if options.get("unit") == "B":  # others count files
                bars.append(self)

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0

    work: Future[str] = Future()

    def download() -> None:
        try:
            folder = snapshot_download(
                repository.id,
                revision=repository.revision,
                allow_patterns=[re.sub(r"([*?[])", r"[\1]", file) for file in wanted],
                tqdm_class=Counter,
            )
            work.set_result(folder)
        except Exception as error:
            work.set_exception(error)

    def megabytes(total: int) -> Iterator[int]:
        for i in range(total):
            while not work.done() and max((b.n for b in bars), default=0) < i * MB:
                wait([work], timeout=0.1)
            yield i

    # Apart, because a notebook shows only what the cell's own thread displays
    Thread(target=download, daemon=True).start()
    size = sum(
        repository.files.get(file, 0)
        for file in wanted
        if not try_to_load_from_cache(repository.id, file, revision=repository.commit)
    )
    bar = f"downloading {repository.id}, MB"
    for _ in progress(megabytes(size // MB), bar=bar, total=size // MB, after=LONG):
        pass
    try:
        return Path(work.result())
    except Exception as error:  # the client's errors have no common class
        # Errors of the disk have a number, those of the network have none
        if isinstance(error, OSError) and error.errno is not None:
            raise AssetError(
                f"the hub's cache cannot be used ({error.filename or constants.HF_HOME}"
                f": {error.strerror}); make room there or set HF_HOME to another "
                "folder."
            ) from error
        raise AssetError(
            f"{repository.name} was not fetched, because {_reason(error, repository)}."
        ) from error


def _reason(error: Exception, repository: Repository) -> str:
    """Say what is wrong and what to do, as a part of a sentence."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        return _reason(error.__cause__, repository)  # what kept it from asking the hub
    hub, status = constants.ENDPOINT, None
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked for it"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"it is gated: accept its terms at {hub}/{repository.id} and set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub}/{repository.id} has no revision {repository.revision}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no such model, or none without the right HF_TOKEN"
    if status in (401, 403):
        return f"{hub} refuses the token (HF_TOKEN, or that of hf auth login)"
    if status:
        return f"{hub} answers with the status {status}"
    return f"{hub} gives no usable answer ({one_line(error) or type(error).__name__})"
