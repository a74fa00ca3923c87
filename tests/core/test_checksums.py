"""What a folder's files were when they were written, and which of them changed."""

import subprocess
from pathlib import Path

from leyden.core.checksums import SUMS, changed_files, write_checksums


def test_a_flipped_bit_and_a_lost_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    files = [tmp_path / "sub" / "a.bin", tmp_path / "b c.txt", tmp_path / "c"]
    for number, file in enumerate(files):
        file.write_bytes(bytes(range(256)) * (number + 1))
    write_checksums(tmp_path, files)
    assert changed_files(tmp_path) == []
    done = subprocess.run(["sha256sum", "--check", SUMS], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == 3
    flipped = bytearray(files[0].read_bytes())
    flipped[100] ^= 1
    files[0].write_bytes(flipped)
    files[1].unlink()
    assert changed_files(tmp_path) == ["b c.txt", "sub/a.bin"]
    assert changed_files(tmp_path, ["c", "unlisted"]) == []


def test_a_folder_without_a_list_has_nothing_to_compare(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    assert changed_files(tmp_path) == []
