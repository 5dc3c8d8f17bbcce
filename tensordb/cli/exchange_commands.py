"""`tensordb import` and `tensordb export`: what they take, and what their help says."""

from __future__ import annotations

import argparse

from tensordb.cli.parsing import Command, declare_access

FORMATS = ("npy", "npz", "safetensors", "parquet", "arrow", "images")


def _import(parser: argparse.ArgumentParser) -> None:
    declare_access(parser, writes=True)
    parser.add_argument("dataset", metavar="DATASET", help="the dataset, made when it is new")
    parser.add_argument("source", metavar="SOURCE", help="file, pattern of Parquet files, or folder of pictures")
    parser.add_argument("--tensor", metavar="COLUMN", help="column of the tensors (default: to find it)")
    parser.add_argument("--record-id", metavar="COLUMN", help="column of the record ids (default: generated)")
    parser.add_argument(
        "--metadata", metavar="COLUMN", action="append", help="take only these columns as metadata; may be repeated"
    )
    _format(parser)
    parser.add_argument("--preset", metavar="NAME", help="compression preset (default: the dataset's, else lossless)")


def _export(parser: argparse.ArgumentParser) -> None:
    declare_access(parser)
    parser.add_argument("dataset", metavar="DATASET", help="name of a dataset, as `tensordb ls` shows it")
    parser.add_argument("target", metavar="TARGET", help="file to write, or new folder for pictures")
    parser.add_argument("--where", metavar="CONDITION", help="SQL condition (default: all records)")
    parser.add_argument("--params", metavar="JSON", help="its values: a list for ?, an object for $name")
    parser.add_argument("--order-by", metavar="EXPRESSIONS", help="SQL order (default: of insertion)")
    parser.add_argument(
        "--column", metavar="NAME", action="append", help="only record_id, tensor or this field; may be repeated"
    )
    _format(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def _format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=FORMATS, help=f"one of {', '.join(FORMATS)} (default: what the name ends in says)"
    )


EXCHANGE = (
    Command(
        "import",
        "insert the tensors of a file, or a folder of pictures, into a dataset",
        "Insert the rows of an .npy, .npz, .parquet or .arrow file as records, the tensors of a .safetensors file, or\n"
        "the pictures of a folder, whose subfolders are labels. All in one commit: after an error nothing was\n"
        "inserted. Files may be larger than memory. The database and the dataset are made when they are new.",
        "tensordb import runs.tdb vectors embeddings.parquet --tensor embedding --record-id id\n"
        "tensordb import runs.tdb vectors 'parts/*.parquet' --json | jq .records\n"
        "tensordb import runs.tdb photos pictures --preset archive\n"
        "tensordb import runs.tdb points points.npy",
        _import,
    ),
    Command(
        "export",
        "write a dataset, or the records that match, to a file",
        "Write the records that match to a Parquet, Arrow, .npy (tensors alone), .npz (an array a column) or\n"
        ".safetensors file (a tensor a record), or as PNG pictures to a folder. It may be larger than memory, and it\n"
        "appears when it is whole. What Parquet and Arrow files hold comes back exactly by `tensordb import`.",
        "tensordb export runs.tdb weights weights.parquet\n"
        'tensordb export runs.tdb weights best.safetensors --where "metadata.loss < 0.1"\n'
        "tensordb export runs.tdb weights late.parquet --where 'metadata.epoch > ?' --params '[3]' --overwrite\n"
        "tensordb export runs.tdb photos pictures --format images",
        _export,
    ),
)
"""The commands that move records in and out."""
