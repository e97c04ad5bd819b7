"""Whether EC2 can do what the settings say, asked before anything is launched; every fault says what to do."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator
from typing import Any

from autoscaler.providers import aws, ec2_fleet
from autoscaler.providers.ec2_options import Options
from autoscaler.providers.user_data import user_data
from batchline.errors import SettingsError

log = logging.getLogger("autoscaler.ec2")


def check(region: aws.Aws, options: Options, pool: str) -> dict[str, str]:
    """Ask EC2 for everything that the settings name.

    Returns:
        The zone of each subnet.

    Raises:
        SettingsError: what is missing, all of it.
        ProviderError: EC2 could not be asked.
    """
    wrong: list[str] = []
    known: dict[str, str] = {}
    wrong += _places(region, options, known)
    architectures: set[str] = set()
    wrong += _types(region, options, set(known.values()), architectures)
    wrong += _template(region, options) if options.launch_template else _image(region, options, architectures, pool)
    if wrong:
        raise SettingsError("\n".join(wrong))
    return known


def _ask(region: aws.Aws, call: str, **arguments: Any) -> dict[str, Any]:
    """One Describe; a refusal for lack of permission is a fault of the settings."""
    try:
        return getattr(region.ask("ec2"), call)(**arguments)
    except aws.FAULTS as e:
        code = aws.code_of(e)
        if code in aws.DENIED_CODES | aws.STRANGER_CODES:
            raise SettingsError(str(aws.provider_error(e, f"check the settings in {region.region}"))) from e
        if code.startswith("Invalid"):
            raise
        raise aws.provider_error(e, f"check the settings in {region.region}") from e


def zones(region: aws.Aws, options: Options) -> dict[str, str]:
    """The zone of each subnet.

    Raises:
        ProviderError: EC2 does not tell.
    """
    try:
        return _subnets(region, options)
    except (*aws.FAULTS, SettingsError) as e:
        raise aws.provider_error(e, "ask for the zones of subnets") from e


def _subnets(region: aws.Aws, options: Options) -> dict[str, str]:
    found = _ask(region, "describe_subnets", SubnetIds=list(options.subnets))["Subnets"]
    return {subnet["SubnetId"]: subnet["AvailabilityZone"] for subnet in found}


def _places(region: aws.Aws, options: Options, known: dict[str, str]) -> Iterator[str]:
    try:
        if options.subnets:
            known |= _subnets(region, options)
            return
        there = [zone["ZoneName"] for zone in _ask(region, "describe_availability_zones")["AvailabilityZones"]]
    except aws.FAULTS as e:
        yield f"{aws.message_of(e)}: name subnets of {region.region} (aws ec2 describe-subnets)."
        return
    known |= {zone: zone for zone in options.zones if zone in there}
    if strange := [zone for zone in options.zones if zone not in there]:
        yield f"{region.region} has no zone {', '.join(strange)}; it has {', '.join(there)}."


def _types(region: aws.Aws, options: Options, zones: set[str], architectures: set[str]) -> Iterator[str]:
    try:
        found = _ask(region, "describe_instance_types", InstanceTypes=list(options.types))["InstanceTypes"]
    except aws.FAULTS as e:
        yield f"{aws.message_of(e)}: mend types (aws ec2 describe-instance-types)."
        return
    each = [set[str](kind.get("ProcessorInfo", {}).get("SupportedArchitectures", [])) for kind in found]
    common = set[str].intersection(*each) if each else set[str]()
    if each and not common:
        yield f"{', '.join(options.types)} have no processor architecture in common; one image cannot serve them."
    architectures |= common
    offered = aws.pages(
        region.ask("ec2"),
        "describe_instance_type_offerings",
        "InstanceTypeOfferings",
        "ask which types are offered",
        LocationType="availability-zone",
        Filters=aws.filters({"instance-type": options.types, "location": sorted(zones)}),
    )
    if zones and (nowhere := set(options.types) - {offer["InstanceType"] for offer in offered}):
        yield f"{', '.join(sorted(nowhere))}: offered in none of {', '.join(sorted(zones))}; take other types or zones."


def _image(region: aws.Aws, options: Options, architectures: set[str], pool: str) -> Iterator[str]:
    try:
        user_data(options.worker, pool=pool, region=region.region)
    except ValueError as e:
        yield f"{e}."
    if options.image.startswith("resolve:ssm:"):
        return
    try:
        images = _ask(region, "describe_images", ImageIds=[options.image])["Images"]
    except aws.FAULTS as e:
        yield f"{aws.message_of(e)}: {_IMAGE_HINT.format(region=region.region)}"
        return
    if not images:
        yield f"there is no image {options.image}: {_IMAGE_HINT.format(region=region.region)}"
        return
    built = images[0].get("Architecture", "")
    if built and architectures and built not in architectures:
        able = ", ".join(sorted(architectures))
        yield f"the image {options.image} is for {built}; {', '.join(options.types)} run {able}."


_IMAGE_HINT = "name an image of {region} that this account may use; images have other ids in each region."


def _template(region: aws.Aws, options: Options) -> Iterator[str]:
    name = options.launch_template
    named = {"LaunchTemplateId": name} if name.startswith("lt-") else {"LaunchTemplateName": name}
    try:
        found = _ask(region, "describe_launch_template_versions", **named, Versions=[options.launch_template_version])[
            "LaunchTemplateVersions"
        ]
    except aws.FAULTS as e:
        yield f"{aws.message_of(e)}: name a launch template of {region.region} (aws ec2 describe-launch-templates)."
        return
    if not found:
        yield f"the launch template {name} has no version {options.launch_template_version}."
        return
    data = found[0].get("LaunchTemplateData", {})
    if not data.get("ImageId"):
        yield f"the launch template {name} names no image."
    if data.get("MetadataOptions", {}).get("HttpTokens") != "required":
        yield f"the launch template {name} does not ask for IMDSv2: set HttpTokens to required in its metadata options."
    if not data.get("UserData"):
        log.warning("the launch template %s has no user data: its image must start a worker by itself", name)


def dry_run(region: aws.Aws, options: Options, stack: str, pool: str, template: str) -> None:
    """Ask whether this role might launch, without launching.

    Raises:
        SettingsError: it may not, or the request does not fit together.
        ProviderError: EC2 could not be asked.
    """
    launch_id = uuid.uuid4()
    place = (
        {"SubnetId": options.subnets[0]} if options.subnets else {"Placement": {"AvailabilityZone": options.zones[0]}}
    )
    key = "LaunchTemplateId" if template.startswith("lt-") else "LaunchTemplateName"
    tagged = aws.tags(stack, pool, launch_id)
    specifications = [{"ResourceType": kind, "Tags": tagged} for kind in ("instance", "volume")]
    single = {
        "LaunchTemplate": {key: template, "Version": options.version},
        "InstanceType": options.types[0],
        "MinCount": 1,
        "MaxCount": 1,
        "TagSpecifications": specifications,
        **place,
    }
    pools = [ec2_fleet.Pool(options.types[0], options.places[0], ec2_fleet.SPOT)]
    fleet = ec2_fleet.request(options, template, pools, 1, 0, tagged=tagged)
    for call, arguments in (("run_instances", single), ("create_fleet", fleet)):
        try:
            getattr(region.ask("ec2"), call)(DryRun=True, **arguments)
        except aws.FAULTS as e:
            _judge(e, call)


def _judge(e: Exception, call: str) -> None:
    code = aws.code_of(e)
    if code == "DryRunOperation":
        return
    trouble = aws.provider_error(e, f"launch (a trial of {call})")
    if code in aws.CAPACITY_CODES or code in aws.THROTTLING_CODES or not code:
        raise trouble
    encoded = re.sub(r"\s*Encoded authorization failure message:.*", "", str(trouble))
    raise SettingsError(encoded) from e
