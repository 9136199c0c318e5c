"""What `guerdon evaluate --json` writes, as far as a page needs it."""

from .scored import METADATA, NASTY


def figure(value, low=None, high=None, n=4):
    return {"value": value, "low": low, "high": high, "n": n, "n_undefined": 1, "macro": value}


def evaluation_of(**more):
    model = {
        "success_auroc": figure(0.93, 0.81, 0.99),
        "calibration_error": figure(0.12),
        "instruction_auroc": figure(None),
    }
    return {
        "model": {"hash": METADATA["model_hash"]},
        "data": "<b>held</b>",
        "split": "",
        "counts": {"episodes": 5, "tasks": 2},
        "conventions": {"pairs": "of one task"},
        "figures": {"model": model, "clock": {"success_auroc": figure(0.5)}},
        "notes": ["nothing <em>wrong</em>"],
        **more,
    }


FULL = {
    "threshold": 0.5,
    "tasks": [{"task": 0, "instruction": NASTY, "episodes": 3, "figures": {"success_auroc": {"value": 0.75}}}],
    "reliability": {"probability": [0.1, None, 0.9], "happened": [0.0, None, 0.5], "count": [8, 0, 2]},
    "confusion": {
        "tasks": [0, 1],
        "instructions": [NASTY, "close"],
        "cells": [[0.9, None], [0.2, 0.7]],
        "counts": [[2, 0], [2, 2]],
        "missing": ["videos of 'close' have no score under 'open'"],
    },
    "comparison": {
        "model": {"path": "runs/<other>"},
        "episodes": 5,
        "left_out": 0,
        "differences": {
            "success_auroc": {
                "first": 0.93, "second": 0.8, "difference": 0.13, "low": 0.02, "high": 0.2, "n": 5, "better": "first",
            },
            "instruction_auroc": {
                "first": None, "second": None, "difference": None, "low": None, "high": None, "n": 0, "better": "",
            },
        },
    },
}  # fmt: skip
