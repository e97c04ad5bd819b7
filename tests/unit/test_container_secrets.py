"""The secrets of the containers: made once, kept for ever, readable by whom they are for."""

from __future__ import annotations

import os
from pathlib import Path

from batchline.local.container_secrets import make_secrets


def test_secrets_are_made_once_and_kept(tmp_path: Path) -> None:
    """A second run makes nothing and changes nothing."""
    made = make_secrets(tmp_path)
    first = {name: (tmp_path / name).read_text() for name in made}
    assert make_secrets(tmp_path) == []
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == first
    assert len(set(first.values())) == len(made) == 6


def test_only_the_servers_passwords_are_for_the_group(tmp_path: Path) -> None:
    """Postgres and Redis run as other users, in the owner's group; nothing is for anybody else, whatever the umask."""
    before = os.umask(0o077)
    try:
        made = make_secrets(tmp_path)
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in made}
    assert modes == dict.fromkeys(made, 0o400) | {"postgres_password": 0o440, "redis_password": 0o440}


def test_addresses_carry_the_passwords(tmp_path: Path) -> None:
    """What the processes connect with is what the servers ask for."""
    make_secrets(tmp_path)
    for url, password in (("database_url", "postgres_password"), ("redis_url", "redis_password")):
        assert f":{(tmp_path / password).read_text().strip()}@" in (tmp_path / url).read_text()


def test_a_container_killed_while_writing_leaves_nothing_half(tmp_path: Path) -> None:
    """A draft of a killed run is thrown away, and a missing file is made to fit those that are there."""
    make_secrets(tmp_path)
    password = (tmp_path / "postgres_password").read_text().strip()
    (tmp_path / "database_url").unlink()
    (tmp_path / ".database_url").write_text("postgresql://batchl")
    assert make_secrets(tmp_path) == ["database_url"]
    assert (tmp_path / "database_url").read_text() == f"postgresql://batchline:{password}@postgres:5432/batchline\n"
    assert not (tmp_path / ".database_url").exists()
