"""What docs/autoscaler.md says of EC2 is what the code takes and calls."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from autoscaler.providers import asg, ec2_options, user_data_command
from autoscaler.tables import decode
from batchline.errors import SettingsError

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "autoscaler.md").read_text().split("\n## EC2\n")[1].split("\n## ")[0]
SERVICES = {"describe_auto_scaling_groups", "set_desired_capacity", "set_instance_protection"} | {
    "terminate_instance_in_auto_scaling_group"
}
FILES = ("asg", "aws", "aws_pool", "ec2_check", "ec2_spot", "prices")


def examples(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL)


def test_the_examples_are_configurations() -> None:
    """Every field of both examples exists; the user data of the first can be printed."""
    first, second = (tomllib.loads(text)["pools"]["cpu"] for text in examples("toml"))
    assert decode(first["ec2-spot"], ec2_options.Options, "ec2-spot").worker.parameters == "/batchline/production"
    assert decode(second["asg"], asg.Options, "asg").group == "batchline-workers"


def test_user_data_is_printed_for_a_template_of_ones_own(tmp_path: Path) -> None:
    """As the autoscaler itself would have given it; a pool of another provider is refused."""
    file = tmp_path / "a.toml"
    file.write_text(examples("toml")[0])
    assert user_data_command.text(file, "cpu").startswith("#cloud-config\n")
    with pytest.raises(SettingsError, match="gpu"):
        user_data_command.text(file, "gpu")


def test_the_policy_allows_every_call() -> None:
    """No call of the providers is missing from the policy, and the policy allows nothing that is not called."""
    (policy,) = (json.loads(text) for text in examples("json"))
    said = [s["Action"] for s in policy["Statement"]]
    granted = {action for entry in said for action in ([entry] if isinstance(entry, str) else entry)}
    source = "\n".join((ROOT / "autoscaler" / "providers" / f"{name}.py").read_text() for name in FILES)
    verbs = "create|run|describe|terminate|set"
    called = set(re.findall(rf'"((?:{verbs})_[a-z_]+)"|\.((?:{verbs})_[a-z_]+)\(', source))
    needed = {
        f"{'autoscaling' if name in SERVICES else 'ec2'}:{''.join(part.capitalize() for part in name.split('_'))}"
        for pair in called
        for name in pair
        if name
    }
    assert granted - {"iam:PassRole"} == needed
