"""`resume-report.json`: what a relaxed resume took over and what it left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from launch.control.resume import Resume
from learner.checkpoint import MODEL_FILE
from learner.partial_restore import FileMatch

REPORT_FILE = "resume-report.json"


def write_report(run_dir: Path, resume: Resume, learner: Mapping[str, FileMatch]) -> Path:
    """Every setting that differed and, by file, every key that was missing or not expected."""
    content = {
        "checkpoint": str(resume.folder),
        "env_steps": resume.env_steps,
        "settings_that_differ": list(resume.differences),
        "replay": "loaded" if resume.keeps_replay else "left out: it belongs to other settings",
        "language_adapter": "loaded" if resume.keeps_adapter else "none that fits",
        "learner": {name: asdict(match) for name, match in learner.items()},
    }
    path = run_dir / REPORT_FILE
    temporary = path.with_name(f".{REPORT_FILE}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def summary(resume: Resume, learner: Mapping[str, FileMatch], path: Path) -> str:
    """One line for the terminal."""
    model = learner[MODEL_FILE]
    parts = [
        f"{model.n_loaded} model tensors taken over",
        f"{len(model.missing)} missing",
        f"{len(model.unexpected)} unexpected",
        f"{len(model.other_shape)} of another shape",
        f"{len(resume.differences)} settings differ",
        "replay loaded" if resume.keeps_replay else "replay left out",
    ]
    return f"resumed relaxed: {', '.join(parts)}; every key is in {path}"
