"""Bad ROMs are refused in Python, before the emulator could read them."""

from pathlib import Path

import pytest

from actors.envs.rom import KNOWN_BODY_SHA256, Rom, find_rom

HEADER = b"NES\x1a\x02\x01\x01" + bytes(9)


def test_the_bundled_rom_is_the_known_one(rom: Rom) -> None:
    assert rom.body_sha256 == KNOWN_BODY_SHA256
    assert find_rom(str(rom.path)) == rom


def test_a_missing_file_names_the_field_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env\.rom: no file at .*none\.nes.*--env\.rom PATH"):
        find_rom(str(tmp_path / "none.nes"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no iNES ROM"),
        (b"PK\x03\x04" + bytes(50_000), "no iNES ROM"),
        (b"NES\x1a", "no iNES ROM"),
        (HEADER + bytes(100), "100 bytes after the header"),
        (b"NES\x1a\x02\x01\x41" + bytes(9 + 40_960), "mapper 4"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "wrong.nes"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        find_rom(str(path))
    assert "env.rom" in str(raised.value) and "--env.rom PATH" in str(raised.value)


def test_another_build_is_accepted_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "other.nes"
    path.write_bytes(HEADER + bytes(40_960))
    with pytest.warns(UserWarning, match=r"env\.rom .* another build"):
        assert find_rom(str(path)).body_sha256 != KNOWN_BODY_SHA256


def test_without_the_carrier_package_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gym-super-mario-bros is not here; install"):
        find_rom()
