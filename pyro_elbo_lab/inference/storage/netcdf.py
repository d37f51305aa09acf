"""netCDF files, written so that a full disk is an error."""

import io
from pathlib import Path
from typing import Any, BinaryIO

import xarray as xr

from pyro_elbo_lab.inference.storage.files import replacing

__all__ = ["write_netcdf"]

_LARGEST_METADATA = 2**20  # bytes; HDF5 reads its own metadata again, but not the data


def write_netcdf(data: xr.Dataset | xr.DataTree, path: str | Path) -> None:
    """Write a Dataset or a DataTree to a netCDF file, as a whole or not at all.

    HDF5 cannot close a file that it could not write, and the process crashes later. Here it
    never learns of the error, which is raised once it has closed the file.

    Args:
        data: what to write.
        path: of the file: see `replacing`.

    Raises:
        OSError: the file cannot be written, such as on a full disk.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "draws.nc"
    >>> write_netcdf(xr.Dataset({"z": ("draw", [1.0, 2.0])}), path)
    >>> xr.load_dataset(path, engine="h5netcdf")["z"].values.tolist()
    [1.0, 2.0]
    """
    with replacing(path) as fresh, fresh.open("w+b", buffering=0) as file:
        patient = _Patient(file)
        data.to_netcdf(patient, engine="h5netcdf")
        if patient.error is not None:
            raise patient.error


class _Patient(io.RawIOBase):
    """A file that takes everything, and keeps the first error for later.

    From then on nothing reaches the disk; what HDF5 may want to read again stays in memory.
    """

    def __init__(self, file: Any) -> None:
        self.error: OSError | None = None
        self._file: BinaryIO = file
        self._at = self._end = 0
        self._kept: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        self._at = start + offset
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self._end = self._at if size is None else size
        if self.error is None:
            try:
                self._file.truncate(self._end)
            except OSError as error:
                self.error = error
        return self._end

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._put(content)
            except OSError as error:
                self.error = error
        if self.error is not None and len(content) <= _LARGEST_METADATA:
            self._kept.append((self._at, bytes(content)))
        self._at += len(content)
        self._end = max(self._end, self._at)
        return len(content)

    def _put(self, content: memoryview) -> None:
        self._file.seek(self._at)
        done = 0
        while done < len(content):
            done += self._file.write(content[done:])

    def readinto(self, buffer: Any) -> int:
        content = memoryview(buffer).cast("B")
        size = max(0, min(len(content), self._end - self._at))
        self._file.seek(self._at)
        content[:size] = self._file.read(size).ljust(size, b"\0")
        for at, kept in self._kept:
            first, last = max(at, self._at), min(at + len(kept), self._at + size)
            if first < last:
                content[first - self._at : last - self._at] = kept[first - at : last - at]
        self._at += size
        return size
