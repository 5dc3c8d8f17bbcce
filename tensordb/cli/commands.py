"""The command line itself: which commands there are, what they take, and what their help says.

Only argparse is needed here, so that help and usage errors cost no import of torch.
"""

from __future__ import annotations

import argparse

from tensordb.cli.checkpoint_commands import CHECKPOINTS
from tensordb.cli.exchange_commands import EXCHANGE
from tensordb.cli.parsing import EXIT_CODES, Command, Family, Parser, declare_access

_TOP = """\
A tensor database is a folder. These commands look into one, also while a training still writes to it;
only `demo`, `import` and some of `checkpoints` write. Errors are one line on stderr. With --json, stdout
holds one JSON value and nothing else: datetimes in ISO 8601 (UTC), NaN and infinities as null."""

_START = """\
examples:
  tensordb demo runs.tdb                      make a database of digits and network weights, and look around
  tensordb ls runs.tdb                        which datasets are there, and how large they are
  tensordb info runs.tdb weights              the metadata fields that conditions may use
  tensordb query runs.tdb weights "metadata.loss < 0.1" --order-by "metadata.epoch DESC" --limit 5
  tensordb query runs.tdb --sql "SELECT metadata.epoch, avg(metadata.loss) FROM weights GROUP BY 1"
  tensordb import runs.tdb digits pictures    a folder of pictures, whose subfolders are labels
  tensordb export runs.tdb digits d.parquet   what pandas, polars, DuckDB and others read
  tensordb checkpoints ls runs.tdb            which checkpoints are there
  tensordb verify runs.tdb && echo intact     read every byte back

`tensordb COMMAND --help` explains a command, with examples."""


def top_parser(version: str) -> Parser:
    """Return the parser of what comes before the command's own arguments."""
    listing = "\n".join(f"  {each.name:<13}{each.summary}" for each in COMMANDS.values())
    parser = Parser(
        prog="tensordb",
        usage="tensordb [--help] [--version] COMMAND ...",
        description=f"{_TOP}\n\ncommands:\n{listing}",
        epilog=f"{_START}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tensordb {version}")
    # Optional for argparse, so that a misspelled option in its place is what the error names.
    parser.add_argument(
        "command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help="one of the commands above"
    )
    return parser


def _place_and_dataset(parser: argparse.ArgumentParser) -> None:
    declare_access(parser)
    parser.add_argument("dataset", metavar="DATASET", help="name of a dataset, as `tensordb ls` shows it")


def _place_and_perhaps_dataset(parser: argparse.ArgumentParser) -> None:
    declare_access(parser)
    parser.add_argument("dataset", metavar="DATASET", nargs="?", help="one dataset (default: all)")


def _head(parser: argparse.ArgumentParser) -> None:
    _place_and_dataset(parser)
    parser.add_argument("-n", type=int, default=10, metavar="N", help="how many records (default: %(default)s)")


def _query(parser: argparse.ArgumentParser) -> None:
    declare_access(parser)
    parser.add_argument("dataset", metavar="DATASET", nargs="?", help="name of a dataset; not with --sql")
    parser.add_argument("where", metavar="WHERE", nargs="?", help="SQL condition (default: all records)")
    parser.add_argument("--order-by", metavar="EXPRESSIONS", help="SQL order, such as 'metadata.loss DESC'")
    parser.add_argument("--limit", type=int, metavar="N", help="largest number of records (default: all)")
    parser.add_argument("--params", metavar="JSON", help="values: a list for ?, an object for $name")
    parser.add_argument("--sql", metavar="QUERY", help="a whole SQL statement, in which each dataset is a table")


def _repair(parser: argparse.ArgumentParser) -> None:
    declare_access(parser, writes=True)
    parser.add_argument("target", metavar="TARGET", nargs="?", help="new folder for what can still be read")
    parser.add_argument("--dry-run", action="store_true", help="only say what is damaged")
    parser.add_argument("--drop-checkpoints", action="store_true", help="remove checkpoints with damaged tensors, too")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", nargs="?", help="new folder to keep the database in (default: a temporary one)"
    )


_COMMANDS = (
    Command(
        "demo",
        "store real images, train a network from them, compare the presets",
        "Store the 1,797 handwritten digits of scikit-learn, train a small network from the database, store its\n"
        "weights each epoch, look at both, and compare the compression presets on the weights. Takes about ten\n"
        "seconds. Needs scikit-learn: pip install 'tensordb[demo]'.",
        "tensordb demo\ntensordb demo digits.tdb && tensordb ls digits.tdb",
        _demo,
    ),
    Command(
        "ls",
        "list the datasets and training runs of a database with their sizes",
        "List the datasets with their records, raw and stored bytes, and the ratio of the two; then the runs with\n"
        "their checkpoints, if there are any. --json has the datasets alone: `tensordb checkpoints ls --json` has the\n"
        "others.",
        "tensordb ls runs.tdb\ntensordb ls runs.tdb --json | jq -r '.[].dataset'",
        declare_access,
    ),
    Command(
        "info",
        "describe a dataset: schema, metadata fields, tensors, compression",
        "Describe one dataset: its schema and compression config, the metadata fields with their SQL types and how\n"
        "many records have them, the kinds of tensors in it, and what they take.",
        "tensordb info runs.tdb weights\ntensordb info runs.tdb weights --json | jq .fields",
        _place_and_dataset,
    ),
    Command(
        "head",
        "show the first records of a dataset",
        "Show the first records in insertion order: metadata, and a summary of each tensor.",
        "tensordb head runs.tdb weights\ntensordb head runs.tdb weights -n 3 --json",
        _head,
    ),
    Command(
        "query",
        "show the records that match an SQL condition, or run SQL",
        "Show the records that match an SQL condition over record_id, created_at, dtype, shape, nbytes and metadata,\n"
        "or the result of one SQL statement that reads. Each record that matches is decoded for its summary;\n"
        "--sql reads no tensors.",
        "tensordb query runs.tdb weights \"metadata.loss < 0.1 AND dtype = 'float32'\"\n"
        "tensordb query runs.tdb weights 'metadata.epoch = ?' --params '[3]' --json\n"
        'tensordb query runs.tdb weights --order-by "metadata.loss" --limit 1\n'
        'tensordb query runs.tdb --sql "SELECT dtype, count(*), sum(nbytes) FROM weights GROUP BY dtype"',
        _query,
    ),
    Command(
        "stats",
        "show what is stored, by compression and quantization",
        "Show records, raw and stored bytes, ratio and worst measured error, by compression and quantization, of one\n"
        "dataset or of all. Stored bytes are those of the payloads, with headers, scales and checksums.",
        "tensordb stats runs.tdb\ntensordb stats runs.tdb weights --json | jq .ratio",
        _place_and_perhaps_dataset,
    ),
    Command(
        "verify",
        "read every stored byte back and report damage",
        "Read every stored byte of a dataset, or of all datasets and checkpoints, and check it. Each damaged\n"
        "record or tensor is named, and the exit code is 1 when there is one.",
        "tensordb verify runs.tdb\ntensordb verify runs.tdb weights --json | jq -r '.damaged[].record_id'",
        _place_and_perhaps_dataset,
    ),
    Command(
        "repair",
        "remove what is damaged, or salvage a database that cannot be opened",
        "Read every stored byte and remove the records and weights that are damaged, naming each. With TARGET the\n"
        "database is not changed: what can still be read goes into that new folder, also when the catalog cannot be\n"
        "opened. The exit code is 1 when something was damaged.",
        "tensordb repair runs.tdb --dry-run\ntensordb repair runs.tdb salvaged.tdb",
        _repair,
    ),
)
COMMANDS: dict[str, Command | Family] = {each.name: each for each in (*_COMMANDS, *EXCHANGE, CHECKPOINTS)}
"""Every command by its name."""
