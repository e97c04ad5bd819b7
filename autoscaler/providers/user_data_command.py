"""`python -m autoscaler.providers.user_data_command FILE POOL`: a pool's user data, for one's own launch template."""

from __future__ import annotations

import sys
from pathlib import Path

from autoscaler import config
from autoscaler.providers.aws import Aws
from autoscaler.providers.ec2_options import Options
from autoscaler.providers.user_data import user_data
from autoscaler.tables import decode
from batchline.errors import BatchlineError, SettingsError


def text(file: Path, pool: str) -> str:
    """The cloud-config of one pool of an autoscaler's file.

    Raises:
        SettingsError: the file, or the pool in it, does not say what is needed.
    """
    pools = config.load(file).pools
    if pool not in pools or pools[pool].provider != "ec2-spot":
        raise SettingsError(f"{file} has no pool {pool!r} with the provider ec2-spot.")
    options = decode(pools[pool].options, Options, "ec2-spot")
    region = Aws(options.region).region
    try:
        return user_data(options.worker, pool=pool, region=region)
    except ValueError as e:
        raise SettingsError(f"{e}.") from e


def main(arguments: list[str]) -> None:
    """Print it."""
    if len(arguments) != 2:
        raise SystemExit("usage: python -m autoscaler.providers.user_data_command FILE POOL")
    try:
        print(text(Path(arguments[0]), arguments[1]), end="")
    except BatchlineError as e:
        raise SystemExit(e.detail) from e


if __name__ == "__main__":
    main(sys.argv[1:])
