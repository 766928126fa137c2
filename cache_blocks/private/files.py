"""Contents of private files: what they are called in the object store, and how they go there and come back.

A private blob's name is a keyed digest of its contents, so that nobody recognises a recording by its digest, and equal
ones are still stored once. The name is checked when a blob is opened, so that a blob vouches for itself as others do.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from cache_blocks.errors import CorruptEntryError, PrivateKeyMissingError
from cache_blocks.fingerprint import digest_path, digest_stream
from cache_blocks.private.sealing import (
    HEADER_BYTES,
    is_sealed,
    label_of,
    seal_stream,
    sealed_size,
    unseal_stream,
    unsealed_parts,
)

if TYPE_CHECKING:
    from cache_blocks.files import CachedFile
    from cache_blocks.private.privacy import Privacy

_REMEMBERED: Final = 10_000


class PrivateFiles:
    """Seals and opens blobs of one cache; those that are not private it leaves alone.

    Args:
        privacy: The ring.
        namespace: Environment that the blobs belong to.
        folder: Where sealed copies are made for a moment.
    """

    def __init__(self, privacy: Privacy, namespace: str, folder: Path) -> None:
        self._privacy = privacy
        self._namespace = namespace
        self._folder = folder
        self._names: dict[str, str] = {}  # by digest of sealed bytes, the name of what is in them

    def name_of(self, file: CachedFile) -> str:
        """Return what a file's blob is called: its digest, or a keyed one. Raises as `Privacy.ring` does."""
        return self.name_of_digest(file.digest) if file.private else file.digest

    def name_of_digest(self, digest: str) -> str:
        """Return what a private blob of these contents is called."""
        return self._privacy.naming.digest("blob", digest)

    def size_of(self, file: CachedFile) -> int:
        """Return how many bytes a file's blob has."""
        return sealed_size(file.size) if file.private else file.size

    def local_name_of(self, file: CachedFile) -> str:
        """Return what the copy on this machine is called; tools go by the suffix."""
        return f"{self._privacy.name(file.name)}{Path(file.name).suffix}" if file.private else file.name

    def shown(self, file: CachedFile) -> str:
        """Return what messages call a file."""
        return self._privacy.name(file.name) if file.private else file.name

    @contextmanager
    def stored_form(self, file: CachedFile, source: Path) -> Generator[Path]:
        """Give the file that is to be stored: the source itself, or a sealed copy for as long as this lasts."""
        if not file.private:
            yield source
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        copy = self._folder / f".{secrets.token_hex(6)}.sealed"
        try:
            with source.open("rb") as plain, copy.open("xb") as sealed:
                seal_stream(plain, sealed, self._privacy.ring, self._place(self.name_of(file)))
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def open_in_place(self, file: CachedFile, copy: Path) -> None:
        """Turn what was fetched of a file's blob into the file.

        Raises:
            PrivateKeyMissingError: The ring does not have its key.
            CorruptEntryError: It was not sealed as this blob.
        """
        if not file.private:
            return
        plain = copy.with_name(f"{copy.name}.open")
        try:
            with copy.open("rb") as sealed, plain.open("xb") as target:
                unseal_stream(sealed, target, self._privacy.ring, self._place(self.name_of(file)))
            plain.replace(copy)
        finally:
            plain.unlink(missing_ok=True)

    def holds(self, path: Path | str, name: str) -> bool:
        """Whether a file on this machine has the bytes of the blob of this name; of one without its key, assume so.

        What cannot be judged must not be removed: the key may come back.
        """
        digest = digest_path(path)
        if digest == name or self._names.get(digest) == name:
            return True
        with Path(path).open("rb") as stream:
            if not self.judge(stream, name):
                return False
        while len(self._names) >= _REMEMBERED:
            self._names.pop(next(iter(self._names)), None)
        self._names[digest] = name
        return True

    def judge(self, stream: BinaryIO, name: str) -> bool:
        """Whether a stream at its start has the bytes of the blob of this name; read to its end in constant memory."""
        header = stream.read(HEADER_BYTES)
        stream.seek(0)
        if not is_sealed(header):
            return digest_stream(stream) == name
        try:
            return self.name_of_digest(digest_stream(cast("BinaryIO", _Opened(stream, self, name)))) == name
        except PrivateKeyMissingError:
            return True
        except CorruptEntryError:
            stream.seek(0)
            return digest_stream(stream) == name  # somebody's file that only begins like a sealed one

    def label(self, header: bytes) -> bytes:
        """Return what a blob that begins so says of its key; nothing when it is not sealed."""
        return label_of(header) if is_sealed(header) and len(header) >= HEADER_BYTES else b""

    def reseal(self, source: Path, target: Path, name: str) -> None:
        """Write a blob anew under the current key; raises as `open_in_place` does."""
        with source.open("rb") as sealed, target.open("xb") as resealed:
            opened = cast("BinaryIO", _Opened(sealed, self, name))
            seal_stream(opened, resealed, self._privacy.ring, self._place(name))

    def parts(self, stream: BinaryIO, name: str) -> Generator[bytes]:
        """Yield the plain bytes of a blob in chunks; raises as `open_in_place` does."""
        yield from unsealed_parts(stream, self._privacy.ring, self._place(name))

    def _place(self, name: str) -> tuple[str, ...]:
        return ("blob", self._namespace, name)


class _Opened:
    """The plain bytes of a sealed blob as a stream, opened chunk by chunk."""

    def __init__(self, stream: BinaryIO, files: PrivateFiles, name: str) -> None:
        self._parts = files.parts(stream, name)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return the next bytes, ``size`` at most; none at the end."""
        while not self._rest and (part := next(self._parts, None)) is not None:
            self._rest = part
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def readinto(self, buffer: memoryview) -> int:
        """Read into a buffer; return how much."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
