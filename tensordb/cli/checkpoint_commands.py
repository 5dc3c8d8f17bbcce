"""The commands of `tensordb checkpoints`: what they take, and what their help says."""

from __future__ import annotations

import argparse
import datetime as dt
import re
import textwrap

from tensordb.cli.parsing import Command, Declare, Family, declare_access

_DURATION = re.compile(r"(\d{1,6})([smhdw])")
_WIDTH = 100
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_CHECKPOINT = "a RUN (its newest checkpoint), RUN@STEP, RUN@TAG, RUN@latest, RUN@best, or a checkpoint id"


def duration(text: str) -> dt.timedelta:
    """Return a duration such as ``"36h"``."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; give a number and s, m, h, d or w, such as 36h")
    return dt.timedelta(**{_UNITS[found[2]]: int(found[1])})


def _best(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metric", metavar="NAME", help="which metric is best (default: the only one there is)")
    parser.add_argument(
        "--mode", choices=["min", "max"], default="min", help="whether the least or the largest is best (default: min)"
    )


def _looking(parser: argparse.ArgumentParser) -> None:
    declare_access(parser)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    _best(parser)


def _changing(parser: argparse.ArgumentParser) -> None:
    declare_access(parser, writes=True)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    _best(parser)


def _ls(parser: argparse.ArgumentParser) -> None:
    declare_access(parser)
    parser.add_argument("run", metavar="RUN", nargs="?", help="one run (default: all)")
    parser.add_argument("-n", type=int, metavar="N", help="only the newest N checkpoints")


def _diff(parser: argparse.ArgumentParser) -> None:
    declare_access(parser)
    parser.add_argument("a", metavar="A", help=_CHECKPOINT)
    parser.add_argument("b", metavar="B", help="what to compare it with")
    parser.add_argument("--keys", action="append", metavar="PATTERN", help="only these tensors; may be repeated")
    parser.add_argument("--no-values", action="store_true", help="only what the catalog knows; reads no tensors")
    parser.add_argument("--all", action="store_true", help="show equal tensors too")
    _best(parser)


def _tag(parser: argparse.ArgumentParser) -> None:
    _changing(parser)
    parser.add_argument("tag", metavar="TAG", help="name within the run")
    parser.add_argument("--force", action="store_true", help="move a tag that is taken")


def _untag(parser: argparse.ArgumentParser) -> None:
    declare_access(parser, writes=True)
    parser.add_argument("run", metavar="RUN", help="the run")
    parser.add_argument("tag", metavar="TAG", help="the tag")


def _fork(parser: argparse.ArgumentParser) -> None:
    _changing(parser)
    parser.add_argument("new_run", metavar="NEW_RUN", help="name of the run to begin")


def _rm(parser: argparse.ArgumentParser) -> None:
    _changing(parser)
    parser.add_argument("--all", action="store_true", help="CHECKPOINT is a RUN: delete it with all its checkpoints")


def _prune(parser: argparse.ArgumentParser) -> None:
    declare_access(parser, writes=True)
    parser.add_argument("run", metavar="RUN", help="the run")
    parser.add_argument("--keep-last", type=int, metavar="N", help="keep the newest N")
    parser.add_argument("--keep-best", type=int, metavar="N", help="keep the best N by --metric")
    parser.add_argument("--keep-every", type=int, metavar="N", help="keep those whose step is a multiple of N")
    parser.add_argument("--keep-within", type=duration, metavar="TIME", help="keep those not older than 36h, 7d, 2w, …")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted")
    _best(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    _looking(parser)
    parser.add_argument("target", metavar="TARGET", help="file or folder to write")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="largest file, such as 5GB (default: one file)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def _import(parser: argparse.ArgumentParser) -> None:
    declare_access(parser, writes=True)
    parser.add_argument("source", metavar="SOURCE", help="file of safetensors or torch, or folder of a model")
    parser.add_argument("run", metavar="RUN", help="run to save it in, made when it is new")
    parser.add_argument("--step", type=int, metavar="N", help="step to save it as (default: none)")


def _verify(parser: argparse.ArgumentParser) -> None:
    declare_access(parser)
    parser.add_argument("run", metavar="RUN", nargs="?", help="one run (default: all)")


def _command(verb: str, summary: str, description: str, examples: str, declare: Declare) -> Command:
    lines = "\n".join(f"tensordb checkpoints {line}" for line in examples.splitlines())
    return Command(f"checkpoints {verb}", summary, textwrap.fill(description, _WIDTH), lines, declare)


CHECKPOINTS = Family(
    "checkpoints",
    "look at, compare, tag, prune and exchange checkpoints of training runs",
    "Checkpoints of training runs. A CHECKPOINT is named as RUN (its newest one), RUN@STEP, RUN@TAG, RUN@latest,\n"
    "RUN@best (by --metric and --mode), or by its id, as `ls` shows it. A run whose name has an @ is meant when\n"
    "the whole text is its name.",
    (
        _command(
            "ls",
            "list checkpoints, oldest first",
            "List the checkpoints of a run, or of all: steps, metrics, tags, raw bytes, and the bytes that each "
            "one added to the database.",
            "ls runs.tdb\nls runs.tdb baseline -n 5\nls runs.tdb --json | jq -r '.[] | [.run, .step] | @tsv'",
            _ls,
        ),
        _command(
            "show",
            "describe one checkpoint and its tensors",
            "Show what is known of one checkpoint, and of each of its tensors: dtype, shape, sizes, what was "
            "applied, the measured error, the norm. Reads no tensors.",
            "show runs.tdb baseline\nshow runs.tdb baseline@100 --json\nshow runs.tdb baseline@best --metric loss",
            _looking,
        ),
        _command(
            "diff",
            "compare two checkpoints tensor by tensor",
            "Compare two checkpoints, worst first: relative change (L2 of the difference over L2 of A), cosine, "
            "largest difference, and the stored bytes that both share. Tensors of the same content are equal "
            "without being read. Differences are no failure: the exit code is 0.",
            "diff runs.tdb baseline@100 baseline@200\ndiff runs.tdb baseline wide --keys 'model.*.weight' --json\n"
            "diff runs.tdb baseline@1 baseline --no-values",
            _diff,
        ),
        _command(
            "tag",
            "give a checkpoint a name, which `prune` respects",
            "Give a checkpoint a name within its run, so that `prune` keeps it.",
            "tag runs.tdb baseline@100 paper\ntag runs.tdb baseline@best good --metric accuracy --mode max --force",
            _tag,
        ),
        _command(
            "untag", "delete a tag", "Delete a tag; its checkpoint stays.", "untag runs.tdb baseline paper", _untag
        ),
        _command(
            "fork",
            "begin a run with a checkpoint of another",
            "Begin a run with a checkpoint of another run. No tensor is copied, and each may be deleted by itself.",
            "fork runs.tdb baseline@100 finetuned",
            _fork,
        ),
        _command(
            "rm",
            "delete a checkpoint, or a run with --all",
            "Delete one checkpoint, or with --all a run with all its checkpoints. What others share stays "
            "readable. A RUN alone is refused, as it could mean either.",
            "rm runs.tdb baseline@100\nrm runs.tdb baseline@latest\nrm runs.tdb baseline --all",
            _rm,
        ),
        _command(
            "prune",
            "delete the checkpoints that nothing asks to keep",
            "Delete the checkpoints of a run that none of the --keep options keeps; the newest, and those with "
            "tags, always stay. With --dry-run nothing is changed.",
            "prune runs.tdb baseline --keep-last 3 --keep-every 1000 --dry-run\n"
            "prune runs.tdb baseline --keep-best 2 --metric loss --keep-within 7d",
            _prune,
        ),
        _command(
            "export",
            "write a checkpoint to safetensors files",
            "Write the model of a checkpoint to safetensors files that need no tensordb to be read. What was "
            "imported comes out as it went in.",
            "export runs.tdb baseline@best model.safetensors\nexport runs.tdb baseline folder --max-shard-size 5GB",
            _export,
        ),
        _command(
            "import",
            "save safetensors or torch files as a checkpoint",
            "Save a safetensors file, a folder of a model, or a file of torch.save as a checkpoint of a run. The "
            "database is created when there is none.",
            "import runs.tdb model.safetensors pretrained\nimport runs.tdb checkpoint.pt old --step 1000",
            _import,
        ),
        _command(
            "verify",
            "read every byte of checkpoints back and report damage",
            "Read every stored byte of the checkpoints of a run, or of all, and check it. Each damaged tensor is "
            "named, and the exit code is 1 when there is one.",
            "verify runs.tdb\nverify runs.tdb baseline --json | jq -r '.damaged_tensors[].name'",
            _verify,
        ),
    ),
)
"""`tensordb checkpoints`."""
