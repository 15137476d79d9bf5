"""Files that are replaced as a whole."""

import subprocess
import sys
from pathlib import Path

WRITER = """
import sys
from pathlib import Path
from kubeletplugin.disk import replace_whole
for number in range(3000):
    replace_whole(Path(sys.argv[1]), sys.argv[2].encode() * 500, durable=False)
"""


def test_readers_find_whole_files_while_two_instances_of_the_program_write(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(b"a" * 500)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(file), letter]) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(file.read_bytes())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {b"a" * 500, b"b" * 500}
    assert list(tmp_path.iterdir()) == [file]
