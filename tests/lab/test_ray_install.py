import platform

from lab import ray_install
from lab.ray_install import why_not


def test_it_says_for_which_machine_there_is_no_wheel(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "no wheel of Ray for CPython" in why_not()
    assert "riscv64" in why_not()


def test_the_lock_has_hashes_and_names_no_index():
    lines = ray_install._VENV.lock.read_text().splitlines()
    assert any(line.startswith("ray[default]==2.60.") for line in lines)
    assert not [line for line in lines if "://" in line]
    packages = [number for number, line in enumerate(lines) if line[0].isalnum()]
    assert [lines[n] for n in packages if not lines[n + 1].startswith("    --hash=sha256:")] == []
